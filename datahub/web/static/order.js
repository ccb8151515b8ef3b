// An order: a quote that follows what is chosen, then signatures, then the job's page.
import { ask, choose, hex, note, send, sentence, signText } from './wallet.js';
import { keyOf } from './results.js';

const form = document.getElementById('order');
const facts = document.getElementById('facts').dataset; // not the form's: one of its fields has that name
const table = document.getElementById('quote');
const state = document.getElementById('quote-state');
const button = document.getElementById('sign');
const NOBODY = '0x0000000000000000000000000000000000000001'; // a quote before a wallet is chosen
let wallet = null;
let asked = 0;
let ready = null;

const epsilon = () => Number((2 ** Number(form.elements.epsilon.value)).toPrecision(3));
const units = text => Math.round(Number(text || 0) * 1e6);
const money = value => `${(value / 1e6).toFixed(2)} tUSD`;
const ticked = name => [...form.querySelectorAll(`input[name=${name}]:checked`)].map(one => one.value);
const base64 = async file => {
  const url = await new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(reader.error);
    reader.readAsDataURL(file);
  });
  return url.slice(url.indexOf(',') + 1);
};

function words() {
  const e = epsilon();
  const surer = 100 * Math.exp(e) / (1 + Math.exp(e));
  document.getElementById('epsilon-shown').textContent = e;
  document.getElementById('epsilon-words').textContent =
    `Somebody who thinks it one in two that a certain patient is in the data can become at most ${surer.toFixed(surer > 99 ? 2 : 0)} % sure by ` +
    `this model, but for a chance of ${facts.delta}. Smaller is more private, and noisier.`;
}

async function body(buyer, key) {
  const model = form.elements.model.value;
  const order = {
    buyer, buyer_public_key: key, datasets: ticked('dataset').map(Number), loss: form.elements.loss.value, epsilon: epsilon(),
    delta: Number(facts.delta), purpose: form.elements.purpose.value.trim(), purpose_codes: ticked('code'),
    reward_units: units(form.elements.reward.value), deadline_s: Number(form.elements.deadline.value),
  };
  if (model) return { ...order, model };
  const [graph, weights] = [form.elements.graph.files[0], form.elements.weights.files[0]];
  if (!graph || !weights) throw new Error('choose the two files of your model');
  return { ...order, graph: await base64(graph), weights: await base64(weights) };
}

function show(quote) {
  const wide = Object.values(quote.interval95);
  const sure = wide.length === 0 ? 'not known beforehand for this kind of model'
    : Math.max(...wide) > 0.9 ? 'hardly: more noise than signal. More patients or a larger epsilon would help'
    : `accuracy within ± ${(50 * quote.interval95.accuracy).toFixed(1)} points, AUC within ± ${(quote.interval95.auc / 2).toFixed(3)}`;
  const rows = [
    ...Object.entries(quote.price_units).map(([id, price]) => [form.querySelector(`input[name=dataset][value='${Number(id)}']`)?.closest('label').querySelector('strong').textContent || `Dataset ${id}`, money(price) + (quote.compute_cap_units[id] ? `, and up to ${money(quote.compute_cap_units[id])} for computing` : '')]),
    ['Reward', money(quote.reward_units)], ['The hub’s fee', money(quote.fee_units)],
    ['In escrow, all together', money(quote.amount_units)],
    ['Epsilon for each patient', `${quote.epsilon.toFixed(3)} in ${quote.rounds} rounds`],
    ['How well it will be measured', sure],
    ['People decide until', new Date(1000 * quote.answer_by).toLocaleString()],
    ['Ready, or the money is back, by', new Date(1000 * quote.deadline).toLocaleString()],
  ];
  table.tBodies[0].replaceChildren(...rows.map(([name, text]) => {
    const row = document.createElement('tr');
    const head = document.createElement('th');
    head.scope = 'row'; head.textContent = name;
    row.append(head, Object.assign(document.createElement('td'), { textContent: text }));
    return row;
  }));
}

async function quote() {
  words();
  const number = ++asked;
  ready = null;
  button.disabled = true;
  const missing = !ticked('dataset').length ? 'Choose a hospital.' : !form.elements.purpose.value.trim() ? 'Say what the model is for.' : '';
  table.hidden = true;
  state.textContent = missing || 'asking for a quote…';
  if (missing) return;
  try {
    const found = await ask('/api/v1/quotes', await body(wallet?.account || NOBODY, '11'.repeat(32)));
    if (number !== asked) return; // something else was chosen meanwhile
    show(found);
    table.hidden = false;
    state.textContent = wallet ? 'This is what you sign for:' : 'Choose a wallet below to order this.';
    ready = found;
    button.disabled = !wallet;
  } catch (error) {
    if (number === asked) state.textContent = sentence(error);
  }
}

let soon = 0;
form.addEventListener('input', event => {
  if (event.target.id === 'wallets' || event.target.id === 'accounts') return;
  document.getElementById('files').hidden = form.elements.model.value !== '';
  words();
  clearTimeout(soon);
  soon = setTimeout(quote, 400);
});
form.addEventListener('submit', async event => {
  event.preventDefault();
  if (!ready || !wallet) return;
  button.disabled = true;
  const shown = ready.amount_units;
  try {
    note('Sign: the text from which the key follows that opens your models. It costs nothing.');
    const { open } = await keyOf(await signText(wallet, facts.message));
    const found = await ask('/api/v1/quotes', await body(wallet.account, hex(open)));
    if (found.amount_units !== shown) throw new Error(`the price has changed to ${money(found.amount_units)}; look at the new quote`);
    const made = await ask('/api/v1/transactions/payment', { terms: found.terms });
    const strange = made.transactions.find(one => ![facts.market, facts.token].includes(one.to));
    if (made.chain_id !== Number(facts.chainId) || strange) throw new Error('the hub asks for a signature that does not belong to this order; nothing was signed');
    await send(wallet, made);
    await ask('/api/v1/jobs', { terms: found.terms });
    note('Paid. On to the job…', 'done');
    location.href = `/jobs/${found.job_id}`;
  } catch (error) {
    note(sentence(error), 'failed');
    quote();
  }
});
choose(one => { wallet = one; quote(); });
quote();
