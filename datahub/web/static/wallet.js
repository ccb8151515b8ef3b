// Wallets in this browser (EIP-6963, EIP-1193): find them, choose an account, sign what the hub has made ready.
const found = new Map();
const listeners = [];

window.addEventListener('eip6963:announceProvider', event => {
  const { info, provider } = event.detail;
  if (!found.has(info.uuid)) {
    found.set(info.uuid, { name: info.name, provider });
    listeners.forEach(one => one());
  }
});

export function look() {
  window.dispatchEvent(new Event('eip6963:requestProvider'));
  if (window.ethereum && !found.size) found.set('injected', { name: 'This browser’s wallet', provider: window.ethereum });
}

// Fill the page's choice of wallets and accounts; `ready({provider, account})` is called when there is one, or null.
export function choose(ready) {
  const wallets = document.getElementById('wallets');
  const accounts = document.getElementById('accounts');
  const label = document.getElementById('account-label');
  const say = () => {
    const wallet = found.get(wallets.value);
    ready(wallet && accounts.value ? { provider: wallet.provider, account: accounts.value } : null);
  };
  const fill = () => {
    const chosen = wallets.value;
    wallets.replaceChildren(...(found.size ? [new Option('choose one', '')] : [new Option('none found', '')]),
      ...[...found].map(([id, one]) => new Option(one.name, id)));
    wallets.value = found.has(chosen) ? chosen : '';
  };
  wallets.addEventListener('change', async () => {
    accounts.replaceChildren();
    const wallet = found.get(wallets.value);
    if (wallet) {
      try {
        const mine = await wallet.provider.request({ method: 'eth_requestAccounts' });
        accounts.replaceChildren(...mine.map(one => new Option(one, one)));
      } catch (error) {
        note(sentence(error), 'failed');
      }
    }
    label.hidden = accounts.options.length === 0;
    say();
  });
  accounts.addEventListener('change', say);
  listeners.push(fill);
  look();
  fill();
}

// One line of what is going on; the last line of #steps says how the one before ended.
export function note(text, kind = '') {
  const steps = document.getElementById('steps');
  const line = document.createElement('li');
  line.textContent = text;
  if (kind) line.className = kind;
  steps.append(line);
  return line;
}

export const sentence = error => (error && (error.data?.message || error.message)) || String(error);

export async function ask(path, body) {
  const reply = await fetch(path, body === undefined ? {} : {
    method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body),
  });
  const answer = await reply.json();
  if (!reply.ok) throw new Error(answer.detail || `the hub answers ${reply.status}`);
  return answer;
}

const wait = ms => new Promise(done => setTimeout(done, ms));

// Sign and send each transaction, saying first what it does; waits until each is on the chain.
export async function send({ provider, account }, made) {
  const chain = Number(await provider.request({ method: 'eth_chainId' }));
  if (chain !== made.chain_id) {
    try {
      await provider.request({ method: 'wallet_switchEthereumChain', params: [{ chainId: '0x' + made.chain_id.toString(16) }] });
    } catch (error) {
      throw new Error(`the wallet is on chain ${chain}; this market is on chain ${made.chain_id}: change it there`);
    }
  }
  for (const { to, data, what } of made.transactions) {
    const line = note(`Sign: ${what}`);
    const hash = await provider.request({ method: 'eth_sendTransaction', params: [{ from: account, to, data, value: '0x0' }] });
    line.textContent = `Sent: ${what}`;
    let receipt = null;
    while (!receipt) {
      await wait(400);
      receipt = await provider.request({ method: 'eth_getTransactionReceipt', params: [hash] });
    }
    if (Number(receipt.status) !== 1) throw new Error(`the chain refused it (transaction ${hash}); nothing else was sent`);
    line.textContent = `Done: ${what}`;
    line.className = 'done';
  }
}

const hex = bytes => [...bytes].map(one => one.toString(16).padStart(2, '0')).join('');
const bytes = text => Uint8Array.from(text.replace(/^0x/, '').match(/../g) || [], one => parseInt(one, 16));

export async function signText({ provider, account }, text) {
  const signature = bytes(await provider.request({ method: 'personal_sign', params: ['0x' + hex(new TextEncoder().encode(text)), account] }));
  if (signature.length === 65 && signature[64] < 27) signature[64] += 27;
  return signature;
}

export { hex };
