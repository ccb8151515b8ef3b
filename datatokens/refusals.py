"""What a person reads when a contract refuses: one sentence for each custom error of
contracts/interfaces/.

Pure: an error's name and arguments in, a sentence out. Knows nothing of connections or of bytes
(chain/artifacts.py decodes those). {fields} are the custom error's arguments, as Solidity names
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SENTENCES = {
    "NotBuyer": "only the buyer {buyer} can pay for this job, not {caller}",
    "JobExists": "this job has been paid for already",
    "WrongStatus": "the job is {status}, so this cannot be done",
    "BadDatasetCount": "a job has 1 to 64 datasets, not {count}",
    "BadQuorum": "quorum={quorum} must be from 1 to {datasets}",
    "BadDeadline": "deadline={deadline} must be 10 minutes to 365 days after {nowSeconds}",
    "NodesNotAscending": "the datasets of a job must be in ascending order of their node keys, "
    "each key once",
    "NodeMismatch": "dataset {datasetId} has the node key {registered} now, not {given}; ask for a "
    "new quote",
    "FeeTooHigh": "fee_units={feeUnits} is more than the {maxUnits} that are allowed",
    "DeadlinePassed": "the deadline {deadline} has passed (it is {nowSeconds})",
    "DeadlineNotPassed": "the deadline {deadline} has not passed yet (it is {nowSeconds})",
    "BadSignature": "signature {index} was not made by the node {expected} of this job over "
    "exactly this content",
    "QuorumNotMet": "{signatures} signatures or hospitals are too few; {needed} are needed",
    "BadOutcomes": "the result has {given} outcomes for {datasets} datasets",
    "AlreadyAccepted": "dataset {index} of the job has accepted already",
    "NotAccepted": "the datasets {worked} (bits) are not all among {accepted}",
    "PayWithoutWork": "dataset {index} of the job did not work, so it cannot be paid",
    "ComputeAboveCap": "dataset {index} of the job asks {computeUnits} units for compute; the cap "
    "is {capUnits}",
    "PaymentsExceedAmount": "the payments sum to {units} units; the job holds {amountUnits}",
    "AmountTooLow": "amount_units={amountUnits} must be at least the reward pool and the fee, "
    "{neededUnits}",
    "BadDispute": "a dispute window is 0 without an arbiter or up to 30 days with one, silent_bps "
    "at most 10000; not "
    "{disputeWindow} s, {arbiter}, {silentBps}",
    "OtherResult": "this is not the result that was attested",
    "WindowOpen": "this has to wait until {until} (it is {nowSeconds})",
    "WindowClosed": "the time for this ended at {until} (it is {nowSeconds})",
    "NotParty": "{caller} is neither the buyer nor a node of this job",
    "NotArbiter": "only the arbiter {arbiter} can rule on this, not {caller}",
    "BadRuling": "paid_bps={paidBps} must be from 0 to 10000",
    "NotGuardian": "only the guardian {guardian} can do this, not {caller}",
    "NodeKeyNotActive": "the node key {node} is {state} in the node registry, so it cannot "
    "accept jobs",
    "NodeKeyNotRevoked": "the node key {node} is not revoked, so what it accepted stands",
    "NotHospitalOwner": "{caller} does not own hospital {hospitalId}",
    "UnknownHospital": "hospital {hospitalId} is not registered",
    "KeyUsedBefore": "the key {key} was registered before, for hospital {hospitalId}; a key serves "
    "once, so make a new one",
    "NoConsent": "the key {key} has not signed this for hospital {hospitalId}",
    "BadValidity": "a key cannot be valid from {validFrom} until {validUntil} (it is {nowSeconds})",
    "KeyNotActive": "the node key {key} is {state}, so this cannot be done with it",
    "BadPublicKey": "a public key of {length} bytes is not the uncompressed point of a P-256, "
    "P-384 or P-521 key",
    "HardwareTooLong": "the hardware is described in at most 256 bytes, not {length}",
    "ReservedMetadataKey": "the metadata key {metadataKey} is reserved by ERC-8004",
    "ERC721NonexistentToken": "there is no dataset or hospital {tokenId}",
    "OtherMarket": "dataset {datasetId} is sold in the market {market}",
    "BuyerNotServed": "dataset {datasetId} is paused or retired, or does not serve {buyer}",
    "BadPause": "until={until} must be at most {maxUntil}",
    "NewJobsArePaused": "new jobs are paused until {until}; those that are paid go on",
    "RewardsExceedPool": "the rewards sum to {sum} units; the pool has {pool}",
    "PoolFull": "the pool of dataset {datasetId} has counted as much as it can",
    "NothingToWithdraw": "{account} has nothing to withdraw",
    "BadProof": "the proof does not show that {account} has weight {weight} in dataset "
    "{datasetId}, epoch {epoch}",
    "NothingToClaim": "{account} has nothing left to claim here",
    "NoContributors": "dataset {datasetId} has no contributor list for epoch {epoch}",
    "ClaimsExceedCredits": "dataset {datasetId}, epoch {epoch}: the claims would exceed what was "
    "credited",
    "WeightsOverflow": "the weights on this proof sum to {sum}, more than any list may have",
    "ClaimExpired": "the signed claim was good until {deadline} (it is {nowSeconds})",
    "BadClaimSignature": "the signature is not that of {account} over exactly these claims with "
    "nonce {nonce}",
    "NothingPaid": "a payment of 0 units into dataset {datasetId} is none",
    "NothingPending": "dataset {datasetId} has no contributor list that waits",
    "AnotherRootPending": "dataset {datasetId} has the contributor list {pending} waiting, not "
    "{given}",
    "DisputeWindowOpen": "the contributor list of dataset {datasetId} may still be disputed until "
    "{until}",
    "DisputeWindowClosed": "the contributor list of dataset {datasetId} could be disputed until "
    "{since}",
    "AlreadyInDispute": "the contributor list of dataset {datasetId} is in dispute",
    "NotInDispute": "the contributor list of dataset {datasetId} is not in dispute",
    "ArbiterHasTime": "the arbiter may still rule on dataset {datasetId} until {until}",
    "NotDatasetOwner": "{caller} does not own dataset {datasetId}",
    "UnknownDataset": "dataset {datasetId} is not listed",
    "ZeroNodeKey": "the node key must not be the zero address",
    "ZeroWeight": "the weights of a contributor list must not sum to 0",
    "NotMinter": "{caller} neither owns dataset {datasetId} nor sells it, so it cannot mint "
    "datatokens",
    "RoleMissing": "{caller} has a role for dataset {datasetId}, but not role {role} that this "
    "needs",
    "UnknownRole": "roles={roles} must be 0, 1 (manager), 2 (publisher) or 3 (both)",
    "UnknownTier": "dataset {datasetId} has no tier {tierId}",
    "TooManyTiers": "dataset {datasetId} has 16 tiers, the most there can be",
    "TierIsClosed": "tier {tierId} of dataset {datasetId} is closed: no more of its datatokens "
    "are made",
    "MaxSupplyExceeded": "tier {tierId} of dataset {datasetId} may have {maxSupply} units of "
    "datatoken ever, not {minted}",
    "NotForSale": "tier {tierId} of dataset {datasetId} has no price, so the market cannot sell it",
    "NotActive": "dataset {datasetId} is {state}, so nothing of it is sold or ordered",
    "RetiredIsFinal": "dataset {datasetId} is retired for good",
    "NotPaused": "dataset {datasetId} is {state}; its market changes only while it is paused",
    "BudgetMayOnlyFall": "dataset {datasetId} has a stated budget of {epsilonMicro} (1e-6) epsilon "
    "and {deltaAtto} (1e-18) "
    "delta, which may only fall",
    "BadPrivacyBudget": "a budget of {epsilonMicro} (1e-6) epsilon and {deltaAtto} (1e-18) delta "
    "says nothing or has delta >= 1",
    "MarketNotAllowed": "the guardian has not allowed the market {market}",
    "BadPaymentToken": "the market {market} names {paymentToken} as its payment token, which "
    "cannot be",
    "StorefrontAlreadySet": "the registry has its storefront already: {storefront}",
    "ZeroCount": "a count of 0 datatokens cannot be bought or dispensed",
    "NothingToBuy": "tier {tierId} of dataset {datasetId} has no price; ask its dispenser",
    "CostsMore": "this costs {units} units now, more than the {maxUnits} agreed to; ask for a new "
    "quote",
    "MarketChanged": "dataset {datasetId} sells in the market {found} now, not {quoted}; ask for a "
    "new quote",
    "MayNotConsume": "{account} may not consume dataset {datasetId} now: its lists or its state "
    "forbid it",
    "NoMarket": "the market of dataset {datasetId} is not allowed (any more)",
    "NotOrdered": "tier {tierId} of dataset {datasetId} is a one-job voucher; it opens no time of "
    "access",
    "NotManager": "{caller} neither owns dataset {datasetId} nor manages it",
    "DispenserOff": "the dispenser of tier {tierId} of dataset {datasetId} is off",
    "NotAllowListed": "{account} is not on the allow list of dataset {datasetId}, which its "
    "dispenser asks for",
    "OverLimit": "tier {tierId} of dataset {datasetId} leaves {left} datatokens here, not {asked}",
    "BadPublishFee": "a publish fee is 1 to 1000 bps for somebody, not {bps} bps for {recipient}",
    "PublishFeeAlreadySet": "dataset {datasetId} has its publish fee already",
    "BadPlatform": "the platform takes 0 to 500 bps for somebody, not {bps} bps for {platform}",
    "ConsumeFeeTooHigh": "the front-end asks for {units} units; {maxUnits} are allowed here",
    "WrongUnits": "{found} units of {paymentToken} moved where {expected} were due",
    "NoFees": "{account} has no fees in {paymentToken} to withdraw",
    "BadContributorBps": "contributor_bps={contributorBps} must be from 0 to 10000",
    "ERC20InsufficientBalance": "{sender} has {balance} units and needs {needed}",
    "ERC20InsufficientAllowance": "{spender} may take {allowance} units and needs {needed}",
}
STATUS_NAMES = {0: "unpaid", 1: "funded", 2: "settled", 3: "refunded", 4: "proposed", 5: "disputed"}
STATE_NAMES = {0: "active", 1: "paused", 2: "retired"}
KEY_STATE_NAMES = {0: "unknown", 1: "not valid yet", 2: "active", 3: "expired", 4: "revoked"}
ENUM_NAMES: Mapping[str, Mapping[int, str]] = {
    "enum IJobEscrow.Status": STATUS_NAMES,
    "enum IDatasetRegistry.State": STATE_NAMES,
    "enum INodeRegistry.KeyState": KEY_STATE_NAMES,
}


def sentence(name: str, arguments: Mapping[str, Any], kinds: Mapping[str, str]) -> str:
    """The refusal `name` with its arguments filled in; `kinds` are their Solidity types, for enums
    by name.

    An error without a sentence, or cut short on its way, is shown as it came: Name(field=value).
    """
    shown = {k: ENUM_NAMES.get(kinds.get(k, ""), {}).get(v, v) for k, v in arguments.items()}
    shown = {k: "0x" + v.hex() if isinstance(v, bytes) else v for k, v in shown.items()}
    try:
        return SENTENCES[name].format(**shown)
    except KeyError:
        return f"{name}({', '.join(f'{k}={v}' for k, v in shown.items())})"
