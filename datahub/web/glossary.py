"""The market's words, each in a sentence. Data only."""

from __future__ import annotations

WORDS = {
    "attestation": "A hospital's signature over the final model and report, given after its own "
    "checks. The escrow pays only against such signatures.",
    "base unit": "The smallest amount of a token: one tUSD is 1,000,000 base units. The programs "
    "count in base units, so nothing is ever rounded.",
    "contributor": "Somebody whose data is in a dataset and who has a part of what it earns.",
    "contributor list": "Who has which part (weight) of a dataset's contributors' earnings. Its "
    "fingerprint is on the chain, so that a claim can be proved and the list not be changed.",
    "datatoken": "A prepaid right to one job on one dataset. It comes back if the job fails.",
    "delta": "The small chance, like 1 in 100,000, with which the promise of epsilon may not hold.",
    "epsilon": "How much one patient's presence may change what leaves a hospital. Small is "
    "private: at 0 nothing could be learned at all; it adds up over jobs, and a lifetime has a "
    "limit that no job can cross.",
    "escrow": "A contract on the chain that holds a job's money until hospitals have signed for "
    "the result, or gives it back.",
    "job": "One order: a model trained over several hospitals, or a question answered by them.",
    "lifetime": "The most epsilon that all jobs together may ever cost one patient.",
    "noise": "Random numbers that a hospital adds to whatever leaves it, so large that no single "
    "patient shows.",
    "node": "The program that a hospital runs. It asks its people, trains, adds noise, signs. It "
    "dials out and opens no door.",
    "quorum": "How many hospitals must deliver for a job to count.",
    "round": "One exchange: the model goes to every hospital, is trained a little, and comes back "
    "noised to be averaged.",
    "schema": "What a dataset's columns are called and mean, in public. Datasets of one schema fit "
    "one order.",
    "settlement": "The transaction that pays hospitals and contributors and gives the rest back.",
    "unit of privacy": "Whom epsilon protects: a whole patient with all records, or one record.",
}
