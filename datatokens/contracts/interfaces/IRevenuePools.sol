// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title Every dataset's revenue: the hospital's part and the contributors' part
/// @notice Contributors are a Merkle tree of (account, weight) per dataset and epoch, not per job: crediting a
///         pool costs the same for ten contributors or a million, and everyone can claim at once.
///         Leaf: keccak256(bytes.concat(keccak256(abi.encode(datasetId, epoch, account, weight)))).
interface IRevenuePools {
    struct Pool {
        uint128 hospitalUnits; // waiting for the owner
        uint64 epoch; // the open epoch, counting from 1: new revenue goes there
    }

    struct Epoch {
        bytes32 root; // 0 until posted
        uint128 totalWeight;
        uint128 creditedUnits;
        uint128 claimedUnits;
    }

    /// @dev What the escrow has seen of a dataset's hospital. Written by the escrow only; never goes down.
    struct Standing {
        uint32 accepted; // jobs agreed to
        uint32 settled; // jobs paid for
        uint32 failed; // jobs agreed to and not done
        uint32 disputed; // jobs done whose result was disputed
        uint32 lost; // disputes in which the arbiter cut the pay
    }

    event RevenueCredited(uint256 indexed datasetId, uint64 indexed epoch, uint256 hospitalUnits, uint256 contributorUnits);
    event ContributorsPosted(uint256 indexed datasetId, uint64 indexed epoch, bytes32 root, uint128 totalWeight, string uri);
    event Claimed(uint256 indexed datasetId, uint64 indexed epoch, address indexed account, uint256 units);
    /// @notice A direct transfer failed (a blocklisted receiver, say), or a fee was earned: waits for withdrawCredit.
    event Credited(address indexed account, uint256 units);
    event CreditWithdrawn(address indexed account, address indexed to, uint256 units);
    event HospitalWithdrawn(uint256 indexed datasetId, address indexed to, uint256 units);
    event DatatokensSold(uint256 indexed datasetId, address indexed buyer, uint256 count, uint256 paidUnits);

    error BadProof(uint256 datasetId, uint64 epoch, address account, uint128 weight);
    error NothingToClaim(uint256 datasetId, uint64 epoch, address account);
    error NoContributors(uint256 datasetId, uint64 epoch);
    error ZeroWeight();
    error NothingToWithdraw(address account);
    /// @notice The hard cap of an epoch: claims can never exceed what was credited to it.
    error ClaimsExceedCredits(uint256 datasetId, uint64 epoch);

    /// @notice The owner posts the tree. The first post is for the open epoch (and what it already earned);
    ///         a later post opens the next epoch, so nobody's earlier share changes.
    function postContributors(uint256 datasetId, bytes32 root, uint128 totalWeight, string calldata uri) external;

    /// @notice Pay `account` its share of the epoch's revenue not claimed yet. Anyone may submit; the money goes to `account`.
    function claim(uint256 datasetId, uint64 epoch, address account, uint128 weight, bytes32[] calldata proof)
        external
        returns (uint256 units);

    /// @notice What `claim` would pay now.
    function claimable(uint256 datasetId, uint64 epoch, address account, uint128 weight) external view returns (uint256 units);

    /// @notice The dataset's owner takes the hospital's part.
    function withdrawHospital(uint256 datasetId, address to) external returns (uint256 units);

    /// @notice Buy `count` prepaid jobs (1e18 datatokens each) at the listed price, into the dataset's revenue.
    function buyDatatokens(uint256 datasetId, uint256 count) external;

    /// @notice Take out what a failed transfer (or the hub's fee) left in credit.
    function withdrawCredit(address to) external returns (uint256 units);

    function credit(address account) external view returns (uint256);
    function standing(uint256 datasetId) external view returns (Standing memory);
    function pool(uint256 datasetId) external view returns (Pool memory);
    function epoch(uint256 datasetId, uint64 epochNumber) external view returns (Epoch memory);
    function claimed(uint256 datasetId, uint64 epochNumber, address account) external view returns (uint256 units);
}
