// Show what the chosen wallet has earned; let it take everything in one transaction.
import { ask, choose, note, send, sentence } from './wallet.js';

const mine = document.getElementById('mine');
const form = document.getElementById('claim');
let wallet = null;

choose(one => { wallet = one; mine.disabled = !one; });
mine.addEventListener('click', () => { location.href = `/claims?account=${wallet.account}`; });

form?.addEventListener('submit', async event => {
  event.preventDefault();
  const button = form.querySelector('button');
  const { account } = form.dataset;
  try {
    if (!wallet) throw new Error('choose your wallet above first');
    if (wallet.account.toLowerCase() !== account.toLowerCase()) throw new Error(`this is about ${account}; the wallet is ${wallet.account}`);
    button.disabled = true;
    const made = await ask('/api/v1/transactions/claim', { account, to: form.elements.to.value.trim() });
    await send(wallet, made);
    note('It is yours. The page shows it again in a moment.', 'done');
    setTimeout(() => location.reload(), 1500);
  } catch (error) {
    note(sentence(error), 'failed');
    button.disabled = false;
  }
});
