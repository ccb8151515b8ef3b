// While a job is open: the page's part about it again whenever the hub says that something has changed. Then: open its model.
import { ask, choose, note, send, sentence, signText } from './wallet.js';
import { keyOf, unseal } from './results.js';

const live = document.getElementById('live');
const job = live.dataset.job;

if (live.dataset.final === 'no') {
  const events = new EventSource(`/api/v1/jobs/${job}/events`);
  let first = true;
  events.addEventListener('job', async () => {
    if (first) { first = false; return; } // the page shows it already
    const part = await fetch(`/jobs/${job}?part=true`);
    if (part.ok) live.innerHTML = await part.text();
  });
  events.addEventListener('end', () => location.reload());
}

const button = document.getElementById('download');
if (button) {
  let wallet = null;
  choose(one => { wallet = one; button.disabled = !one; });
  button.addEventListener('click', async () => {
    button.disabled = true;
    try {
      note('Sign: the text from which the key follows that opens your models. It costs nothing.');
      const key = await keyOf(await signText(wallet, live.dataset.message));
      const reply = await fetch(`/api/v1/jobs/${job}/result`);
      if (!reply.ok) throw new Error((await reply.json()).detail);
      const opened = await unseal(new Uint8Array(await reply.arrayBuffer()), key, job);
      const link = document.createElement('a');
      link.href = URL.createObjectURL(new Blob([opened], { type: 'application/zip' }));
      link.download = `job-${job.slice(0, 12)}.zip`;
      link.click();
      note('Opened: model, graph and report are in the downloaded archive.', 'done');
    } catch (error) {
      note(sentence(error), 'failed');
    }
    button.disabled = false;
  });
}

const back = document.getElementById('refund');
if (back) {
  let wallet = null;
  choose(one => { wallet = one; back.disabled = !one; });
  back.addEventListener('click', async () => {
    back.disabled = true;
    try {
      await send(wallet, await ask(`/api/v1/transactions/refund/${job}`, {}));
      note('It is on its way back.', 'done');
      setTimeout(() => location.reload(), 1500);
    } catch (error) {
      note(sentence(error), 'failed');
      back.disabled = false;
    }
  });
}
