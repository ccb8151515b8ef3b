// The key that opens a buyer's models, made from a signature of the wallet, and HPKE (RFC 9180) with it:
// DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM, base mode, as fl_server/results.py seals.
const text = one => new TextEncoder().encode(one);
const join = (...parts) => {
  const all = new Uint8Array(parts.reduce((n, one) => n + one.length, 0));
  let at = 0;
  for (const one of parts) { all.set(one, at); at += one.length; }
  return all;
};
const PKCS8 = Uint8Array.from([0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x6e, 4, 0x22, 4, 0x20]); // RFC 8410, before 32 bytes
const KEM = join(text('KEM'), Uint8Array.of(0, 0x20));
const SUITE = join(text('HPKE'), Uint8Array.of(0, 0x20, 0, 1, 0, 2));
const EMPTY = new Uint8Array();

async function hmac(key, message) {
  const made = await crypto.subtle.importKey('raw', key.length ? key : new Uint8Array(32), { name: 'HMAC', hash: 'SHA-256' }, false, ['sign']);
  return new Uint8Array(await crypto.subtle.sign('HMAC', made, message));
}
const extract = (suite, salt, label, ikm) => hmac(salt, join(text('HPKE-v1'), suite, text(label), ikm));
const expand = async (suite, prk, label, info, length) => // at most one block of 32 bytes
  (await hmac(prk, join(Uint8Array.of(0, length), text('HPKE-v1'), suite, text(label), info, Uint8Array.of(1)))).slice(0, length);

export async function keyOf(signature) {
  const ikm = await crypto.subtle.importKey('raw', signature, 'HKDF', false, ['deriveBits']);
  const raw = new Uint8Array(await crypto.subtle.deriveBits({ name: 'HKDF', hash: 'SHA-256', salt: EMPTY, info: text('datahub result key 2') }, ikm, 256));
  const secret = await crypto.subtle.importKey('pkcs8', join(PKCS8, raw), { name: 'X25519' }, true, ['deriveBits']);
  const { x } = await crypto.subtle.exportKey('jwk', secret);
  const open = Uint8Array.from(atob(x.replace(/-/g, '+').replace(/_/g, '/')), one => one.charCodeAt(0));
  return { secret, open };
}

export async function unseal(sealed, { secret, open }, job) {
  const enc = sealed.slice(0, 32);
  const theirs = await crypto.subtle.importKey('raw', enc, { name: 'X25519' }, false, []);
  const dh = new Uint8Array(await crypto.subtle.deriveBits({ name: 'X25519', public: theirs }, secret, 256));
  const shared = await expand(KEM, await extract(KEM, EMPTY, 'eae_prk', dh), 'shared_secret', join(enc, open), 32);
  const context = join(Uint8Array.of(0), await extract(SUITE, EMPTY, 'psk_id_hash', EMPTY), await extract(SUITE, EMPTY, 'info_hash', text('datahub result ' + job)));
  const prk = await extract(SUITE, shared, 'secret', EMPTY);
  const key = await crypto.subtle.importKey('raw', await expand(SUITE, prk, 'key', context, 32), 'AES-GCM', false, ['decrypt']);
  const iv = await expand(SUITE, prk, 'base_nonce', context, 12);
  try {
    return new Uint8Array(await crypto.subtle.decrypt({ name: 'AES-GCM', iv }, key, sealed.slice(32)));
  } catch {
    throw new Error('it does not open with this wallet: it was sealed to another one');
  }
}
