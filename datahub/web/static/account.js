// Sign in with a wallet (EIP-4361), sign out, and say where changes of one's jobs are told.
import { ask, choose, hex, note, sentence, signText } from './wallet.js';

const act = (element, what) => element?.addEventListener(element.tagName === 'FORM' ? 'submit' : 'click', async event => {
  event.preventDefault();
  try {
    await what();
  } catch (error) {
    note(sentence(error), 'failed');
  }
});

const change = async (method, path, body) => {
  const reply = await fetch(path, { method, headers: { 'content-type': 'application/json' }, body: body && JSON.stringify(body) });
  const answer = await reply.json();
  if (!reply.ok) throw new Error(answer.detail);
  return answer;
};

const sign = document.getElementById('sign-in');
if (sign) {
  let wallet = null;
  choose(one => { wallet = one; sign.disabled = !one; });
  act(sign, async () => {
    const { message } = await ask('/api/v1/session/message', { account: wallet.account });
    document.getElementById('what').textContent = message;
    const signature = '0x' + hex(await signText(wallet, message));
    await ask('/api/v1/session', { message, signature });
    location.reload();
  });
}

act(document.getElementById('sign-out'), async () => {
  await change('DELETE', '/api/v1/session');
  location.reload();
});

const hook = document.getElementById('webhook');
act(hook, async () => {
  const { secret } = await change('PUT', '/api/v1/session/webhook', { url: hook.elements.url.value.trim() });
  note(`Changes are told there from now on. The secret that signs them, shown this once: ${secret}`, 'done');
});
act(document.getElementById('no-webhook'), async () => {
  await change('DELETE', '/api/v1/session/webhook');
  note('Nobody is told any more.', 'done');
});
