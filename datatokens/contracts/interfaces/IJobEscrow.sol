// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title One payment for one training job over many datasets, released only against the nodes' signatures
/// @notice A job is the hash of its terms and one storage slot; the terms travel as calldata.
interface IJobEscrow {
    enum Status {
        None,
        Funded,
        Settled,
        Refunded
    }

    struct DatasetTerm {
        uint64 datasetId;
        address node; // must be the registry's node key at creation; strictly ascending over the list
        uint96 priceUnits; // must be the registry's price at creation; 0 with a voucher
        bool voucher; // pay with 1.0 datatoken, held here and burned at settlement or given back
    }

    struct Terms {
        address buyer;
        uint96 rewardUnits; // the reward pool, shared by the attested payout list
        uint96 feeUnits; // the hub's fee, earned at settlement only
        uint40 deadline; // unix seconds: settle at or before it, refund after it
        uint16 quorum; // how many of the nodes must sign
        bytes32 specHash; // sha-256 of the canonical JSON job terms
        DatasetTerm[] datasets; // 1..64
    }

    /// @dev One slot. `amountUnits` = sum of prices + rewardUnits + feeUnits.
    struct Job {
        uint96 amountUnits;
        uint40 deadline;
        Status status;
    }

    struct Result {
        bytes32 modelHash;
        bytes32 reportHash;
        uint256 worked; // bit i set: datasets[i] trained to the end; the others are paid nothing
        uint96[] rewardUnits; // one per dataset, 0 where the bit is clear; sum <= terms.rewardUnits
    }

    event JobCreated(bytes32 indexed jobId, address indexed buyer, uint256 amountUnits, Terms terms);
    /// @param paidUnits credited to pools (prices + rewards)   @param changeUnits given back to the buyer
    event JobSettled(
        bytes32 indexed jobId, bytes32 modelHash, bytes32 reportHash, uint256 worked, uint256 paidUnits, uint256 changeUnits
    );
    /// @param rejected true when the nodes' signed refusals ended the job, false when its deadline did
    event JobRefunded(bytes32 indexed jobId, uint256 amountUnits, bool rejected);
    /// @notice A direct transfer failed (a blocklisted receiver, say): the units wait here for withdrawCredit.
    event Credited(address indexed account, uint256 units);
    event CreditWithdrawn(address indexed account, address indexed to, uint256 units);

    error NotBuyer(address buyer, address caller);
    error JobExists(bytes32 jobId);
    /// @notice The job is not in the state that this call needs.
    error WrongStatus(bytes32 jobId, Status status);
    error BadDatasetCount(uint256 count);
    error BadQuorum(uint256 quorum, uint256 datasets);
    /// @notice The deadline must lie at least 10 minutes and at most 365 days ahead.
    error BadDeadline(uint256 deadline, uint256 nowSeconds);
    error NodesNotAscending(uint256 index);
    error PriceMismatch(uint256 datasetId, uint256 given, uint256 listed);
    error NodeMismatch(uint256 datasetId, address given, address registered);
    error FeeTooHigh(uint256 feeUnits, uint256 maxUnits);
    error DeadlinePassed(uint256 deadline, uint256 nowSeconds);
    error DeadlineNotPassed(uint256 deadline, uint256 nowSeconds);
    /// @notice A signature was not made by the expected node of this job over exactly this content.
    error BadSignature(uint256 index, address expected);
    error QuorumNotMet(uint256 signatures, uint256 needed);
    error BadPayouts(uint256 given, uint256 datasets);
    error RewardWithoutWork(uint256 index);
    error RewardsExceedPool(uint256 sum, uint256 pool);
    error NothingToWithdraw(address account);

    /// @notice Escrow the whole price of the job. The buyer must have approved `amountUnits` of the payment
    ///         token and 1.0 of each voucher datatoken. Emits JobCreated.
    function createJob(Terms calldata terms) external returns (bytes32 jobId);

    /// @notice Pay against attestations. `signers[k]` is an index into terms.datasets, strictly ascending,
    ///         `signatures[k]` its node's EIP-712 signature of
    ///         Attestation(bytes32 jobId,bytes32 modelHash,bytes32 reportHash,uint256 worked,bytes32 rewardsHash),
    ///         rewardsHash = keccak256(abi.encodePacked(result.rewardUnits)) (each element padded to 32 bytes).
    ///         Anyone may submit. Unspent units and unused vouchers go back to the buyer here.
    function settle(Terms calldata terms, Result calldata result, uint256[] calldata signers, bytes[] calldata signatures)
        external;

    /// @notice Anyone, after the deadline: everything back to the buyer.
    function refund(Terms calldata terms) external;

    /// @notice Anyone, at any time, with enough signed refusals that the quorum can no longer be met.
    ///         Each is the node's EIP-712 signature of Rejection(bytes32 jobId,bytes32 reasonHash).
    function refundRejected(
        Terms calldata terms,
        uint256[] calldata signers,
        bytes32[] calldata reasonHashes,
        bytes[] calldata signatures
    ) external;

    /// @notice Take out what a failed transfer (or the hub's fee) left in credit.
    function withdrawCredit(address to) external returns (uint256 units);

    function job(bytes32 jobId) external view returns (Job memory);
    function credit(address account) external view returns (uint256);
    /// @return jobId keccak256(abi.encode(block.chainid, address(this), keccak256(abi.encode(terms))))
    function hashTerms(Terms calldata terms) external view returns (bytes32 jobId);
}
