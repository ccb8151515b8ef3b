// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title Every dataset's revenue: the hospital's part and the contributors' part
/// @notice Contributors are a Merkle sum tree of (account, weight) per dataset and epoch (see SumTree), not per job:
///         crediting a pool costs the same for ten contributors or a million, and everyone can claim at once. The
///         registers only ever grow; an epoch's revenue is what the contributors' register grew by while it was live.
interface IRevenuePools {
    /// @dev One slot, the only one that a settled job touches. Both sums are of everything ever credited.
    struct Pool {
        uint96 hospitalUnits; // what was withdrawn is in `withdrawn`
        uint96 contributorUnits;
        uint16 contributorBps; // the registry's, as of the last acceptance or sale
        uint24 epoch; // the live one, counting from 1; 0: no list was ever live
        uint24 settled; // jobs paid for; stays at its greatest value
    }

    /// @dev One contributor list and its money. `creditedUnits` grows while the epoch is live, then stays.
    struct Epoch {
        bytes32 root; // 0 until live
        uint64 totalWeight; // the last 64 bits of the root
        uint256 creditedUnits;
        uint256 claimedUnits;
    }

    /// @dev What the escrow has seen of a dataset's hospital. Written by the escrow only; never goes down.
    struct Standing {
        uint32 accepted; // jobs agreed to
        uint32 settled; // jobs paid for
        uint32 failed; // jobs agreed to and not done
        uint32 disputed; // jobs done whose result was disputed
        uint32 lost; // disputes in which the arbiter cut the pay
    }

    /// @dev A list that waits for its dispute window to pass.
    struct Pending {
        bytes32 root; // 0: none
        uint40 postedAt; // unix seconds; 0: none
        uint40 disputedAt; // 0: not in dispute
        address disputer;
    }

    /// @dev One share: `account` has `weight` in the dataset's list of this epoch, by this proof.
    struct Claim {
        uint256 datasetId;
        uint64 epoch;
        uint64 weight;
        bytes32[] proof;
    }

    /// @notice A list that will be, or at once is (see ContributorsLive), the one of `epoch`.
    event ContributorsPosted(uint256 indexed datasetId, uint64 indexed epoch, bytes32 root, string uri);
    /// @param startUnits the contributors' register at that moment: what comes after it belongs to this epoch
    event ContributorsLive(uint256 indexed datasetId, uint64 indexed epoch, bytes32 root, uint256 startUnits);
    event ContributorsDisputed(uint256 indexed datasetId, uint64 indexed epoch, bytes32 root, address disputer);
    /// @param upheld true: the list is dropped and the bond went back; false: the bond went to the hospital
    event DisputeRuled(uint256 indexed datasetId, uint64 indexed epoch, bytes32 root, bool upheld);
    /// @notice The arbiter said nothing: the list is dropped and the bond went back.
    event DisputeExpired(uint256 indexed datasetId, uint64 indexed epoch, bytes32 root);
    /// @notice Where the units went is in the payment token's own event.
    event Claimed(uint256 indexed datasetId, uint64 indexed epoch, address indexed account, uint256 units);
    event HospitalWithdrawn(uint256 indexed datasetId, address indexed to, uint256 units);
    event DatatokensSold(uint256 indexed datasetId, address indexed buyer, uint256 count, uint256 paidUnits);
    /// @notice A direct transfer failed (a blocklisted receiver, say), or a fee was earned: waits for withdrawCredit.
    event Credited(address indexed account, uint256 units);
    event CreditWithdrawn(address indexed account, address indexed to, uint256 units);
    event RevenuePaid(uint256 indexed datasetId, address indexed payer, uint256 units);

    error BadProof(uint256 datasetId, uint64 epoch, address account, uint64 weight);
    /// @notice None of the claims has anything left.
    error NothingToClaim(address account);
    error NoContributors(uint256 datasetId, uint64 epoch);
    error ZeroWeight();
    /// @notice The hard cap of an epoch: claims can never exceed what it earned.
    error ClaimsExceedCredits(uint256 datasetId, uint64 epoch);
    error ClaimExpired(uint256 deadline, uint256 nowSeconds);
    /// @notice The signature is not `account`'s over exactly these claims, receiver, deadline and its next nonce.
    error BadClaimSignature(address account, uint256 nonce);
    error NothingPaid(uint256 datasetId);
    error NothingPending(uint256 datasetId);
    /// @notice Another list is pending than the one that was meant: it was replaced in the meantime.
    error AnotherRootPending(uint256 datasetId, bytes32 given, bytes32 pending);
    error DisputeWindowOpen(uint256 datasetId, uint256 until);
    error DisputeWindowClosed(uint256 datasetId, uint256 since);
    error AlreadyInDispute(uint256 datasetId);
    error NotInDispute(uint256 datasetId);
    error NotArbiter(address arbiter, address caller);
    error NothingToWithdraw(address account);
    /// @notice A pool counts up to 2**96 - 1 units in all its life.
    error PoolFull(uint256 datasetId);
    error ArbiterHasTime(uint256 datasetId, uint256 until);

    /// @notice The owner posts a list: the root's last 64 bits are the sum of its weights, its leaves carry the
    ///         number of the live epoch + 1. The first list of a dataset whose contributors have earned nothing is
    ///         live at once. Any other waits for activateContributors while the last one serves; posting again
    ///         replaces it and starts its window anew, except in a dispute, where it is frozen.
    function postContributors(uint256 datasetId, bytes32 root, string calldata uri) external;

    /// @notice Anyone, 3 days after it was posted: the pending list becomes live. All that was earned until now stays
    ///         with the last list (with the first one, where there was none).
    function activateContributors(uint256 datasetId) external;

    /// @notice Anyone, within the 3 days: freeze the pending list, for a bond, until the arbiter has ruled.
    /// @param root the list that is meant: an owner who quietly swaps it cannot catch the bond with a good one
    function disputeContributors(uint256 datasetId, bytes32 root) external;

    /// @notice The arbiter: upheld drops the list and gives the bond back; else the bond goes to the hospital's part
    ///         and the list may become live.
    function ruleDispute(uint256 datasetId, bytes32 root, bool upheld) external;

    /// @notice Anyone, 14 days after a dispute that the arbiter has not ruled on: as if it had been upheld.
    function expireDispute(uint256 datasetId) external;

    /// @notice The caller's own shares of any number of datasets and epochs, to any address. Claims with nothing left
    ///         are passed over; NothingToClaim if that is all of them.
    function claim(Claim[] calldata claims, address to) external returns (uint256 units);

    /// @notice Anyone pays `account` its shares.
    function claimOnBehalf(address account, Claim[] calldata claims) external returns (uint256 units);

    /// @notice Anyone submits what `account` signed (its key, or ERC-1271), to any address, once. EIP-712, so that a
    ///         wallet can show it (the proofs need no signature: they follow from the rest):
    ///         ClaimTo(address account,address to,uint256 nonce,uint256 deadline,Share[] shares)
    ///         Share(uint256 datasetId,uint64 epoch,uint64 weight), nonce = claimNonce(account).
    function claimFor(address account, Claim[] calldata claims, address to, uint256 deadline, bytes calldata signature)
        external
        returns (uint256 units);

    /// @notice What a claim would pay now to one who can prove this weight.
    function claimable(uint256 datasetId, uint64 epochNumber, address account, uint64 weight)
        external
        view
        returns (uint256 units);

    /// @notice The dataset's owner takes the hospital's part.
    function withdrawHospital(uint256 datasetId, address to) external returns (uint256 units);

    /// @notice Buy `count` prepaid jobs (1e18 datatokens each) at the listed price, into the dataset's revenue.
    function buyDatatokens(uint256 datasetId, uint256 count) external;

    /// @notice Anyone pays revenue into a dataset's pool; it is split as that of a job.
    function payRevenue(uint256 datasetId, uint256 units) external;

    function pool(uint256 datasetId) external view returns (Pool memory);
    /// @notice Take out what a failed transfer (or the hub's fee) left in credit.
    function withdrawCredit(address to) external returns (uint256 units);

    function credit(address account) external view returns (uint256);
    function standing(uint256 datasetId) external view returns (Standing memory);
    function withdrawn(uint256 datasetId) external view returns (uint256 units);
    function epoch(uint256 datasetId, uint64 epochNumber) external view returns (Epoch memory);
    function pendingContributors(uint256 datasetId) external view returns (Pending memory);
    function claimed(uint256 datasetId, uint64 epochNumber, address account) external view returns (uint256 units);
    function claimNonce(address account) external view returns (uint256);
}
