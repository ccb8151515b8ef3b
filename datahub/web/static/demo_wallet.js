// The embedded chain's test accounts as a wallet (EIP-6963, EIP-1193): their keys are public, and the chain signs for whoever asks.
// A market on a real chain serves no page that loads this.
const chain = document.getElementById('demo-wallet').dataset.chain;
let last = 0;

const provider = {
  async request({ method, params = [] }) {
    const reply = await fetch(chain, {
      method: 'POST', headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ jsonrpc: '2.0', id: ++last, method, params }),
    });
    const answer = await reply.json();
    if (answer.error) throw new Error(answer.error.message);
    // the first are the operator and the hospitals; the buyer of the demo is the sixth
    return method === 'eth_requestAccounts' ? [...answer.result.slice(5), ...answer.result.slice(0, 5)] : answer.result;
  },
};
const info = Object.freeze({ uuid: 'd47a4b00-0000-4000-8000-000000000000', name: 'Demo wallet (test money)', icon: 'data:,', rdns: 'datahub.demo' });
const announce = () => window.dispatchEvent(new CustomEvent('eip6963:announceProvider', { detail: Object.freeze({ info, provider }) }));
window.addEventListener('eip6963:requestProvider', announce);
announce();
