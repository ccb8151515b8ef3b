"""What a dataset may be used for, in the codes of the Data Use Ontology, against what a buyer says
that a job is for. Pure; knows nothing of nodes.

Source: GA4GH Data Use Ontology (DUO), EBISPOT/DUO, release 2021-02-23, and the matching rules of
Lawson et al. 2021, Cell Genomics 1(2), 100028. Only what follows from codes alone is decided here;
the rest is a note for the person who decides. No code is ever taken for a yes that was not written.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# what data are permitted for: code -> (short name, what it means)
PERMISSIONS = {
    "DUO:0000004": ("NRES", "any use"),
    "DUO:0000042": ("GRU", "general research"),
    "DUO:0000006": ("HMB", "health, medical and biomedical research"),
    "DUO:0000007": ("DS", "research on one disease, whose MONDO code follows it"),
    "DUO:0000011": ("POA", "population origins or ancestry research"),
    # a modifier in the ontology, but one that allows more: care is no research, so nothing else
    # than this or any use covers it
    "DUO:0000043": ("CC", "the care of patients, besides"),
}
# what narrows it: code -> (short name, what it means)
MODIFIERS = {
    "DUO:0000012": ("RS", "only the kind of research that the agreement names"),
    "DUO:0000015": ("NMDS", "no methods development"),
    "DUO:0000016": ("GSO", "genetic studies only"),
    "DUO:0000018": ("NPUNCU", "not-for-profit organisations, and no commercial use"),
    "DUO:0000019": ("PUB", "results must be published"),
    "DUO:0000020": ("COL", "in collaboration with the owner"),
    "DUO:0000021": ("IRB", "an ethics committee's approval must be shown"),
    "DUO:0000022": ("GS", "only within the regions that the agreement names"),
    "DUO:0000024": ("MOR", "no publication before the date in the agreement"),
    "DUO:0000025": ("TS", "only until the date in the agreement"),
    "DUO:0000026": ("US", "only the users that the agreement names"),
    "DUO:0000027": ("PS", "only the project that the agreement names"),
    "DUO:0000028": ("IS", "only the institutions that the agreement names"),
    "DUO:0000029": ("RTN", "results must be returned to the owner"),
    "DUO:0000044": ("NPOA", "no population origins or ancestry research"),
    "DUO:0000045": ("NPU", "not-for-profit organisations only"),
    "DUO:0000046": ("NCU", "no commercial use"),
}
# what a job may say that it is for: code -> what it means
INTENTS = {
    "DUO:0000042": "general research",
    "DUO:0000006": "health, medical and biomedical research",
    "DUO:0000007": "research on one disease, whose MONDO code follows it",
    "DUO:0000011": "population origins or ancestry research",
    "DUO:0000015": "methods development",
    "DUO:0000043": "care of patients",
    "DUO:0000046": "non-commercial use",
    "DUO:0000045": "a not-for-profit organisation asks",
}
DISEASE = re.compile(r"MONDO:\d{7}", re.ASCII)
_GENERAL, _HEALTH, _ONE_DISEASE, _ANCESTRY = (
    "DUO:0000042",
    "DUO:0000006",
    "DUO:0000007",
    "DUO:0000011",
)
_CARE, _METHODS = "DUO:0000043", "DUO:0000015"
# permission -> the intents that it covers
COVERS = {
    "DUO:0000004": set(INTENTS),
    _GENERAL: {_GENERAL, _HEALTH, _ONE_DISEASE, _ANCESTRY, _METHODS},
    _HEALTH: {_HEALTH, _ONE_DISEASE},
    _ONE_DISEASE: {_ONE_DISEASE},
    _ANCESTRY: {_ANCESTRY},
    _CARE: {_CARE},
}
# modifier -> the intent that it rules out
RULES_OUT = {"DUO:0000015": _METHODS, "DUO:0000044": _ANCESTRY}
# modifier -> what a job must declare; the rest of the modifiers are for a person to look at
MUST_DECLARE = {
    "DUO:0000018": ("DUO:0000045", "DUO:0000046"),
    "DUO:0000045": ("DUO:0000045",),
    "DUO:0000046": ("DUO:0000046",),
}
_OF_THE_ASKER = ("DUO:0000045", "DUO:0000046")  # say who asks, not what for


def problem(codes: Sequence[str], known: Sequence[str]) -> str | None:
    """What is wrong with a list of codes, in a sentence; None if each is of `known` or a disease
    after DUO:0000007, and nothing is there twice.
    """
    for code in codes:
        if code not in known and not DISEASE.fullmatch(code):
            return (
                f"{code[:40]!r} is not one of {', '.join(known)}, or a disease like MONDO:0005148"
            )
    if len(set(codes)) != len(codes):
        return "a code is there twice"
    if (_ONE_DISEASE in codes) != any(DISEASE.fullmatch(code) for code in codes):
        return "DUO:0000007 and the codes of diseases go together"
    return None


def match(permits: Sequence[str], asks: Sequence[str]) -> tuple[list[str], list[str]]:
    """(why data with these permissions must not be used so, what a person has to look at), one
    sentence each. Without permissions nothing is decided.
    """
    if not permits:
        return [], []
    allowed = ", ".join(f"{code} ({_meaning(code)})" for code in permits)
    silent = f"the buyer has declared no purpose codes; the data are for {allowed}"
    if not asks:
        return [], [silent]
    # a disease is what DUO:0000007 says, whether that stands beside it or not
    said = [*asks, *([_ONE_DISEASE] if _ONE_DISEASE not in asks and _diseases(asks) else [])]
    look = [] if set(said) - set(_OF_THE_ASKER) else [silent]
    given = [code for code in permits if code in PERMISSIONS]
    covered = set().union(*(COVERS[code] for code in given)) | set(_OF_THE_ASKER)
    against = [
        f"{code} ({INTENTS[code]}) is not covered by what the data are permitted for: "
        f"{', '.join(given) or 'nothing'}"
        for code in said
        if code in INTENTS and code not in covered
    ]
    against += [
        f"{code} is no code of what a job can be for; known are {', '.join(INTENTS)} and diseases"
        for code in asks
        if code not in INTENTS and not DISEASE.fullmatch(code)
    ]
    diseases = _diseases(permits)
    strange = sorted(_diseases(asks) - diseases) or ([] if _diseases(asks) else ["one not named"])
    narrow = _ONE_DISEASE in given and not {_GENERAL, _HEALTH, "DUO:0000004"} & set(given)
    if _ONE_DISEASE in said and strange and narrow:
        look.append(
            f"the data are for {', '.join(sorted(diseases))}; whether {', '.join(strange)} is part "
            "of it is not known here"
        )
    for code in permits:
        if code not in MODIFIERS:
            continue
        sentence = f"{code} ({MODIFIERS[code][0]}): {MODIFIERS[code][1]}"
        if code in RULES_OUT:
            against += [sentence] if RULES_OUT[code] in asks else []
        elif code in MUST_DECLARE:
            against += [sentence] if not set(MUST_DECLARE[code]) <= set(asks) else []
        else:
            look.append(sentence)
    return against, look


def _diseases(codes: Sequence[str]) -> set[str]:
    return {code for code in codes if DISEASE.fullmatch(code)}


def _meaning(code: str) -> str:
    if code in PERMISSIONS:
        return PERMISSIONS[code][1]
    return MODIFIERS[code][1] if code in MODIFIERS else "a disease"
