"""Every page of a running market in both widths and both colour schemes, as pictures to look at:

    make demo KEEP=1        # in another terminal; prints the market's address
    make screenshots HUB=http://127.0.0.1:PORT

Decides nothing; people look.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import httpx
from playwright.sync_api import sync_playwright

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
WIDTHS, SCHEMES = (375, 1440), ("light", "dark")


def pages(hub: str) -> dict[str, str]:
    """Name -> path, of one of each kind that the market has something to show for."""
    jobs = httpx.get(f"{hub}/api/v1/jobs").json()
    rows = httpx.get(f"{hub}/api/v1/datasets").json()
    first = rows[0]["dataset_id"]
    same = [one["dataset_id"] for one in rows if one["schema_hash"] == rows[0]["schema_hash"]]
    found = {
        "home": "/",
        "datasets": "/datasets",
        "dataset": f"/datasets/{first}",
        "order": f"/order?{'&'.join(f'dataset={one}' for one in same)}",
        "jobs": "/jobs",
        "hospital": f"/hospitals/{rows[0]['node']}",
        "earnings": "/claims",
        "words": "/words",
    }
    settled = [one["job_id"] for one in jobs if one["state"] == "settled"]
    return found | ({"job": f"/jobs/{settled[0]}"} if settled else {})


def main() -> None:
    """Take them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--hub", required=True, help="the address of a running market")
    parser.add_argument("--out", type=Path, default=Path("screenshots"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for name, path in pages(given.hub.rstrip("/")).items():
            for width in WIDTHS:
                for scheme in SCHEMES:
                    page = browser.new_page(viewport={"width": width, "height": 900})
                    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
                    page.goto(given.hub.rstrip("/") + path, wait_until="load")
                    page.wait_for_timeout(500)  # the quote and the wallets
                    page.screenshot(path=given.out / f"{name}-{width}-{scheme}.png", full_page=True)
                    page.close()
        browser.close()


if __name__ == "__main__":
    main()
