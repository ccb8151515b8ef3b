// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title One payment for one training job over many datasets, released only against the nodes' signatures
/// @notice A job is the hash of its terms and one storage slot; the terms travel as calldata. Its life:
///         Funded -accept (each hospital)-> Funded -settle (quorum of attestations)-> Settled, or, with a dispute
///         window in the terms, -> Proposed -finalize-> Settled | -dispute (bond)-> Disputed -rule | silence-> Settled.
///         Funded -refund (deadline) | refundRejected (signed refusals)-> Refunded. Nothing else ends a job.
interface IJobEscrow {
    enum Status {
        None,
        Funded,
        Settled,
        Refunded,
        Proposed,
        Disputed
    }

    /// @dev `lines` is packed, one line of JobLayout.sol for each of 1..64 datasets: id, node, tier, price, compute cap.
    ///      `node` must be the registry's node key when that hospital accepts. The tier tells which datatoken of the
    ///      dataset pays where bit i of `vouchers` is set; the price is 0 there.
    struct Terms {
        address buyer;
        uint96 amountUnits; // all that is escrowed: the sum of prices and compute caps + rewardUnits + feeUnits
        uint96 rewardUnits; // the reward pool, shared by the attested outcomes
        uint96 feeUnits; // the hub's fee, earned at settlement only
        uint96 bondUnits; // what a dispute costs whoever raises it, unless the arbiter agrees
        uint40 deadline; // unix seconds: settle at or before it, refund after it
        uint32 disputeWindow; // seconds between the attestations and the payment; 0 = paid at once
        uint16 quorum; // how many of the nodes must sign
        uint16 silentBps; // what part is paid, in basis points, if the arbiter of a dispute stays silent
        address arbiter; // who rules on disputes, an account or a contract; 0 without a window
        uint64 vouchers; // bit i: datasets[i] is paid with 1.0 datatoken, held here, burned or given back
        bytes32 specHash; // sha-256 of the canonical JSON job terms
        bytes lines;
    }

    /// @dev One slot. `until` is the end of the dispute window or of the arbiter's time; 0 before.
    struct Job {
        uint96 amountUnits;
        uint64 accepted; // bit i: the hospital of datasets[i] has accepted
        uint40 until;
        Status status;
    }

    /// @dev `outcomes[i]`, one word of JobLayout.sol per dataset: compute, reward, epsilon in 1e-6, delta in 1e-12. The
    ///      first two are 0 where the dataset did not work.
    struct Result {
        bytes32 modelHash;
        bytes32 reportHash;
        uint64 worked; // bit i set: datasets[i] trained to the end; the others are paid nothing
        uint256[] outcomes;
    }

    event JobCreated(bytes32 indexed jobId, address indexed buyer, uint256 amountUnits, uint256 deadline);
    /// @notice What the job's id is the hash of; said at the first acceptance, when others come to depend on it.
    event JobTerms(bytes32 indexed jobId, Terms terms);
    /// @param accepted the bits that this call added
    event JobAccepted(bytes32 indexed jobId, uint256 accepted);
    /// @param revoked the bits that this call took away
    event AcceptanceRevoked(bytes32 indexed jobId, uint256 revoked);
    /// @notice A quorum vouches for this result: the public ledger of epsilon and delta, and what is to be paid.
    event JobAttested(
        bytes32 indexed jobId, bytes32 modelHash, bytes32 reportHash, uint256 worked, uint256 signers, uint256[] outcomes
    );
    event JobDisputed(bytes32 indexed jobId, address indexed disputer, uint256 bondUnits, uint256 ruleBy);
    /// @param paidBps part of the attested amounts that was paid: 10_000, or what the arbiter (or its silence) said
    /// @param paidUnits credited to pools   @param changeUnits given back to the buyer
    event JobSettled(bytes32 indexed jobId, uint256 paidBps, uint256 paidUnits, uint256 changeUnits);
    /// @param rejected true when the nodes' signed refusals ended the job, false when its deadline did
    event JobRefunded(bytes32 indexed jobId, uint256 amountUnits, bool rejected);
    event NewJobsPaused(uint256 until);

    error NotBuyer(address buyer, address caller);
    error JobExists(bytes32 jobId);
    /// @notice The job is not in the state that this call needs.
    error WrongStatus(bytes32 jobId, Status status);
    error BadDatasetCount(uint256 count);
    error BadQuorum(uint256 quorum, uint256 datasets);
    /// @notice The deadline must lie at least 10 minutes and at most 365 days ahead.
    error BadDeadline(uint256 deadline, uint256 nowSeconds);
    /// @notice A window of 0 goes with no arbiter, one of up to 30 days with an arbiter; silentBps is at most 10_000.
    error BadDispute(uint256 disputeWindow, address arbiter, uint256 silentBps);
    /// @notice Reward pool and fee are parts of the amount.
    error AmountTooLow(uint256 amountUnits, uint256 neededUnits);
    error NodesNotAscending(uint256 index);
    error FeeTooHigh(uint256 feeUnits, uint256 maxUnits);
    error DeadlinePassed(uint256 deadline, uint256 nowSeconds);
    error DeadlineNotPassed(uint256 deadline, uint256 nowSeconds);
    /// @notice A signature was not made by the expected node of this job over exactly this content.
    error BadSignature(uint256 index, address expected);
    error QuorumNotMet(uint256 signatures, uint256 needed);
    error BadOutcomes(uint256 given, uint256 datasets);
    error AlreadyAccepted(uint256 index);
    error NotAccepted(uint256 worked, uint256 accepted);
    /// @notice Acceptances are taken back only for keys that the node registry says are revoked.
    error NodeKeyNotRevoked(address node);
    error PayWithoutWork(uint256 index);
    error ComputeAboveCap(uint256 index, uint256 computeUnits, uint256 capUnits);
    error RewardsExceedPool(uint256 sum, uint256 pool);
    error PaymentsExceedAmount(uint256 units, uint256 amountUnits);
    /// @notice The result is not the one that was attested.
    error OtherResult(bytes32 given, bytes32 attested);
    error WindowOpen(uint256 until, uint256 nowSeconds);
    error WindowClosed(uint256 until, uint256 nowSeconds);
    error NotParty(address caller);
    error BadRuling(uint256 paidBps);
    error NotGuardian(address guardian, address caller);
    error BadPause(uint256 until, uint256 maxUntil);
    error NewJobsArePaused(uint256 until);

    /// @notice Escrow the whole amount. The buyer must have approved `amountUnits` of the payment token and 1.0 of
    ///         each voucher datatoken. Prices and node keys are checked by each hospital before it accepts.
    function createJob(Terms calldata terms) external returns (bytes32 jobId);

    /// @notice createJob with an ERC-2612 permit for `amountUnits`, so that one transaction is enough. A permit that
    ///         fails (somebody submitted it first) does not matter as long as the allowance is there.
    function createJobWithPermit(Terms calldata terms, uint256 permitDeadline, uint8 v, bytes32 r, bytes32 s)
        external
        returns (bytes32 jobId);

    /// @notice Hospitals agree to the job: bit i of `signers` and, in ascending order, their nodes' EIP-712 signatures
    ///         of Acceptance(bytes32 jobId). Anyone may submit, in one call or many, until the deadline.
    function accept(Terms calldata terms, uint64 signers, bytes[] calldata signatures) external;

    /// @notice Anyone, while the job is funded: take back the acceptances (bits) of node keys that were revoked since, so
    ///         that who stole one cannot attest with it.
    function revokeAcceptances(Terms calldata terms, uint64 revoked) external;

    /// @notice Attestations of a quorum. `signers` are bits within `result.worked`, which are bits of accepted datasets;
    ///         `signatures`, in ascending order of the bits, are EIP-712 signatures of
    ///         Attestation(bytes32 jobId,bytes32 modelHash,bytes32 reportHash,uint64 worked,bytes32 outcomesHash),
    ///         outcomesHash = keccak256(abi.encodePacked(result.outcomes)); 64 bytes (r, vs; ERC-2098), 65 (r, s, v)
    ///         or whatever an ERC-1271 node takes. Anyone may submit. Without a dispute window this pays: pools are
    ///         credited, what is not spent and unused vouchers go back to the buyer.
    function settle(Terms calldata terms, Result calldata result, uint64 signers, bytes[] calldata signatures) external;

    /// @notice Anyone: pay an attested job after its window, or a disputed one after the arbiter's silence.
    function finalize(Terms calldata terms, Result calldata result) external;

    /// @notice The buyer, or a node of the job, within the window: the arbiter shall look. Costs the bond.
    function dispute(Terms calldata terms, Result calldata result) external;

    /// @notice The arbiter: pay this part of the attested amounts, the rest goes back to the buyer. 10_000 = the
    ///         dispute was wrong: its bond goes to the other side.
    function rule(Terms calldata terms, Result calldata result, uint256 paidBps) external;

    /// @notice Anyone, after the deadline: everything back to the buyer.
    function refund(Terms calldata terms) external;

    /// @notice Anyone, at any time, with enough signed refusals that the quorum can no longer be met. Each is the
    ///         node's EIP-712 signature of Rejection(bytes32 jobId,bytes32 reasonHash).
    function refundRejected(
        Terms calldata terms,
        uint64 signers,
        bytes32[] calldata reasonHashes,
        bytes[] calldata signatures
    ) external;

    /// @notice The guardian: no new jobs until then, at most 14 days ahead; 0 ends it. Touches nothing that is funded.
    function pauseNewJobs(uint40 until) external;

    function job(bytes32 jobId) external view returns (Job memory);
    /// @return digest keccak256 of the attested result while a job is proposed or disputed, else 0
    function proposal(bytes32 jobId) external view returns (bytes32 digest);
    /// @return jobId keccak256(abi.encode(block.chainid, address(this), keccak256(abi.encode(terms))))
    function hashTerms(Terms calldata terms) external view returns (bytes32 jobId);
}
