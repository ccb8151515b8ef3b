// While a job is open: ask again, and reload the page when something has changed.
const live = document.getElementById('live');
const final = ['settled', 'refunded'];
async function look() {
  try {
    const job = await (await fetch('/api/jobs/' + live.dataset.job)).json();
    if (job.state !== live.dataset.state || String(job.rounds.length) !== live.dataset.rounds) {
      location.reload();
      return;
    }
  } catch (error) {
    live.textContent = 'The hub does not answer; trying again.';
  }
  setTimeout(look, 1000);
}
if (!final.includes(live.dataset.state)) setTimeout(look, 1000);
