// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {IERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Permit.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";
import {Datatoken} from "./Datatoken.sol";
import {JobLayout} from "./JobLayout.sol";
import {RevenuePools} from "./RevenuePools.sol";
import {IDatasetRegistry} from "./interfaces/IDatasetRegistry.sol";
import {IJobEscrow} from "./interfaces/IJobEscrow.sol";
import {INodeRegistry} from "./interfaces/INodeRegistry.sol";

// deadlines and windows are minutes to days; a proposer moves the time of a block by seconds
// slither-disable-start timestamp
// a loop goes over at most 64 datasets of a job; what fails in it fails for the one who sends, and others can leave it out
// slither-disable-start calls-loop
// every function that moves a token is nonReentrant, here and in the other half
// slither-disable-start reentrancy-benign,reentrancy-no-eth
// as above; events tell what happened, no contract reads them
// slither-disable-start reentrancy-events

/// @title The escrow part of the market: every job is funded once and ends once, settled or refunded
abstract contract JobEscrow is IJobEscrow, RevenuePools {
    /// @notice The hub's fee is at most this part of what the buyer escrows, in basis points of 10_000.
    uint256 public constant MAX_FEE_BPS = 500;
    /// @notice How long an arbiter may think before silence decides.
    uint256 public constant RULING_TIME = 14 days;
    uint256 private constant FULL_BPS = 10_000;
    uint256 private constant MAX_DATASETS = 64;
    uint256 private constant MIN_TIME = 10 minutes;
    uint256 private constant MAX_TIME = 365 days;
    uint256 private constant MAX_WINDOW = 30 days;
    uint256 private constant MAX_PAUSE = 14 days;
    uint256 private constant ONE_JOB = 1e18;
    bytes32 private constant ACCEPTANCE = keccak256("Acceptance(bytes32 jobId)");
    bytes32 private constant ATTESTATION = keccak256(
        "Attestation(bytes32 jobId,bytes32 modelHash,bytes32 reportHash,uint64 worked,bytes32 outcomesHash)"
    );
    bytes32 private constant REJECTION = keccak256("Rejection(bytes32 jobId,bytes32 reasonHash)");

    struct Dispute {
        address disputer;
        bytes32 result;
    }

    /// @notice Whose credit the fee of a settled job goes to.
    address public immutable feeRecipient;
    /// @notice Who may pause new jobs, and nothing else.
    address public immutable guardian;
    /// @notice No new jobs until then (unix seconds).
    uint40 public pausedUntil;
    mapping(bytes32 jobId => Job) private _jobs;
    mapping(bytes32 jobId => Dispute) private _disputes;

    constructor(address feeRecipient_, address guardian_) {
        feeRecipient = feeRecipient_;
        guardian = guardian_;
    }

    /// @inheritdoc IJobEscrow
    function createJob(Terms calldata terms) external nonReentrant returns (bytes32 jobId) {
        return _create(terms);
    }

    /// @inheritdoc IJobEscrow
    function createJobWithPermit(Terms calldata terms, uint256 permitDeadline, uint8 v, bytes32 r, bytes32 s)
        external
        nonReentrant
        returns (bytes32 jobId)
    {
        try IERC20Permit(address(paymentToken)).permit(
            msg.sender, address(this), terms.amountUnits, permitDeadline, v, r, s
        ) {} catch {} // used already, or no such token: the allowance decides
        return _create(terms);
    }

    /// @inheritdoc IJobEscrow
    function accept(Terms calldata terms, uint64 signers, bytes[] calldata signatures) external nonReentrant {
        (bytes32 jobId, Job storage held) = _find(terms, Status.Funded);
        if (block.timestamp > terms.deadline) revert DeadlinePassed(terms.deadline, block.timestamp);
        bytes32 digest = _hashTypedDataV4(keccak256(abi.encode(ACCEPTANCE, jobId)));
        uint64 accepted = held.accepted;
        held.accepted = accepted | signers;
        if (accepted == 0) emit JobTerms(jobId, terms);
        emit JobAccepted(jobId, signers);
        _checkBits(terms, signers);
        uint256 found = 0;
        for (uint256 i = 0; signers >> i != 0; ++i) {
            if (signers >> i & 1 == 0) continue;
            if (accepted >> i & 1 == 1) revert AlreadyAccepted(i);
            (uint256 datasetId, address node,) = JobLayout.who(terms.lines, i);
            if (found == signatures.length) revert QuorumNotMet(found, found + 1);
            _checkSignature(found, node, digest, signatures[found]);
            _noteBps(datasetId, registry.checkAcceptance(datasetId, node, terms.buyer));
            _countAccepted(datasetId);
            ++found;
        }
        if (found == 0 || found != signatures.length) revert QuorumNotMet(signatures.length, found);
    }

    /// @inheritdoc IJobEscrow
    function revokeAcceptances(Terms calldata terms, uint64 revoked) external nonReentrant {
        (bytes32 jobId, Job storage held) = _find(terms, Status.Funded);
        uint64 accepted = held.accepted;
        if (revoked == 0 || revoked & ~accepted != 0) revert NotAccepted(revoked, accepted);
        held.accepted = accepted ^ revoked;
        emit AcceptanceRevoked(jobId, revoked);
        INodeRegistry nodes = registry.nodes();
        for (uint256 i = 0; revoked >> i != 0; ++i) {
            if (revoked >> i & 1 == 0) continue;
            (uint256 datasetId, address node,) = JobLayout.who(terms.lines, i);
            // whose hospital it was does not matter
            // slither-disable-next-line unused-return
            (INodeRegistry.KeyState state,) = nodes.keyStatus(node);
            if (state != INodeRegistry.KeyState.Revoked) revert NodeKeyNotRevoked(node);
            _countFailed(datasetId); // it agreed, and will not deliver
        }
    }

    /// @inheritdoc IJobEscrow
    function settle(Terms calldata terms, Result calldata result, uint64 signers, bytes[] calldata signatures)
        external
        nonReentrant
    {
        (bytes32 jobId, Job storage held) = _find(terms, Status.Funded);
        if (block.timestamp > terms.deadline) revert DeadlinePassed(terms.deadline, block.timestamp);
        if (result.worked & ~held.accepted != 0) revert NotAccepted(result.worked, held.accepted);
        if (signers & ~result.worked != 0) revert NotAccepted(signers, result.worked);
        // as many signatures as bits, and each by another node: _checkSignatures
        if (signatures.length < terms.quorum) revert QuorumNotMet(signatures.length, terms.quorum);
        _checkOutcomes(terms, result);
        _checkSignatures(terms, signers, _attestation(jobId, result), signatures);
        emit JobAttested(jobId, result.modelHash, result.reportHash, result.worked, signers, result.outcomes);
        if (terms.disputeWindow == 0) {
            held.status = Status.Settled;
            _pay(jobId, terms, result, held.accepted, FULL_BPS);
        } else {
            held.status = Status.Proposed;
            held.until = uint40(block.timestamp + terms.disputeWindow);
            _disputes[jobId].result = keccak256(abi.encode(result));
        }
    }

    /// @inheritdoc IJobEscrow
    function finalize(Terms calldata terms, Result calldata result) external nonReentrant {
        bytes32 jobId = hashTerms(terms);
        Job storage held = _jobs[jobId];
        Status status = held.status;
        if (status != Status.Proposed && status != Status.Disputed) revert WrongStatus(jobId, status);
        if (block.timestamp <= held.until) revert WindowOpen(held.until, block.timestamp);
        _checkResult(jobId, result);
        held.status = Status.Settled;
        address disputer = _disputes[jobId].disputer;
        delete _disputes[jobId];
        if (status == Status.Proposed) {
            _pay(jobId, terms, result, held.accepted, FULL_BPS);
        } else {
            _pay(jobId, terms, result, held.accepted, terms.silentBps);
            _payBack(disputer, terms.bondUnits);
        }
    }

    /// @inheritdoc IJobEscrow
    function dispute(Terms calldata terms, Result calldata result) external nonReentrant {
        (bytes32 jobId, Job storage held) = _find(terms, Status.Proposed);
        if (block.timestamp > held.until) revert WindowClosed(held.until, block.timestamp);
        _checkResult(jobId, result);
        bool party = msg.sender == terms.buyer;
        for (uint256 i = 0; i < result.outcomes.length; ++i) {
            (uint256 datasetId, address node,) = JobLayout.who(terms.lines, i);
            if (node == msg.sender) party = true;
            if (result.worked >> i & 1 == 1) _countDisputed(datasetId);
        }
        if (!party) revert NotParty(msg.sender);
        held.status = Status.Disputed;
        held.until = uint40(block.timestamp + RULING_TIME);
        _disputes[jobId].disputer = msg.sender;
        emit JobDisputed(jobId, msg.sender, terms.bondUnits, held.until);
        _pull(paymentToken, msg.sender, terms.bondUnits);
    }

    /// @inheritdoc IJobEscrow
    function rule(Terms calldata terms, Result calldata result, uint256 paidBps) external nonReentrant {
        (bytes32 jobId, Job storage held) = _find(terms, Status.Disputed);
        if (msg.sender != terms.arbiter) revert NotArbiter(terms.arbiter, msg.sender);
        if (block.timestamp > held.until) revert WindowClosed(held.until, block.timestamp);
        if (paidBps > FULL_BPS) revert BadRuling(paidBps);
        _checkResult(jobId, result);
        held.status = Status.Settled;
        address disputer = _disputes[jobId].disputer;
        delete _disputes[jobId];
        for (uint256 i = 0; paidBps < FULL_BPS && i < result.outcomes.length; ++i) {
            if (result.worked >> i & 1 == 1) _countLost(_datasetAt(terms, i));
        }
        _pay(jobId, terms, result, held.accepted, paidBps);
        if (paidBps < FULL_BPS) {
            _payBack(disputer, terms.bondUnits);
        } else if (disputer == terms.buyer) {
            _shareBond(terms, result.worked);
        } else {
            _payBack(terms.buyer, terms.bondUnits);
        }
    }

    /// @inheritdoc IJobEscrow
    function refund(Terms calldata terms) external nonReentrant {
        (bytes32 jobId, Job storage held) = _find(terms, Status.Funded);
        if (block.timestamp <= terms.deadline) revert DeadlineNotPassed(terms.deadline, block.timestamp);
        // whoever accepted and let the deadline pass has failed
        _refundAll(jobId, held, terms, held.accepted, false);
    }

    /// @inheritdoc IJobEscrow
    function refundRejected(
        Terms calldata terms,
        uint64 signers,
        bytes32[] calldata reasonHashes,
        bytes[] calldata signatures
    ) external nonReentrant {
        (bytes32 jobId, Job storage held) = _find(terms, Status.Funded);
        uint256 needed = JobLayout.count(terms.lines) - terms.quorum + 1;
        uint256 given = _bits(signers);
        if (given < needed || given != signatures.length || given != reasonHashes.length) {
            revert QuorumNotMet(given, needed);
        }
        _checkBits(terms, signers);
        uint256 found = 0;
        address before = address(0);
        for (uint256 i = 0; signers >> i != 0; ++i) {
            if (signers >> i & 1 == 0) continue;
            (, address node,) = JobLayout.who(terms.lines, i);
            if (node <= before) revert NodesNotAscending(i);
            before = node;
            bytes32 digest = _hashTypedDataV4(keccak256(abi.encode(REJECTION, jobId, reasonHashes[found])));
            _checkSignature(found, node, digest, signatures[found]);
            ++found;
        }
        _refundAll(jobId, held, terms, held.accepted & signers, true);
    }

    /// @inheritdoc IJobEscrow
    function pauseNewJobs(uint40 until) external {
        if (msg.sender != guardian) revert NotGuardian(guardian, msg.sender);
        if (until > block.timestamp + MAX_PAUSE) revert BadPause(until, block.timestamp + MAX_PAUSE);
        pausedUntil = until;
        emit NewJobsPaused(until);
    }

    /// @inheritdoc IJobEscrow
    function job(bytes32 jobId) external view returns (Job memory) {
        return _jobs[jobId];
    }

    /// @inheritdoc IJobEscrow
    function proposal(bytes32 jobId) external view returns (bytes32 digest) {
        return _disputes[jobId].result;
    }

    /// @inheritdoc IJobEscrow
    function hashTerms(Terms calldata terms) public view returns (bytes32) {
        return keccak256(abi.encode(block.chainid, address(this), keccak256(abi.encode(terms))));
    }

    function _create(Terms calldata terms) private returns (bytes32 jobId) {
        if (block.timestamp <= pausedUntil) revert NewJobsArePaused(pausedUntil);
        if (msg.sender != terms.buyer) revert NotBuyer(terms.buyer, msg.sender);
        jobId = hashTerms(terms);
        if (_jobs[jobId].status != Status.None) revert JobExists(jobId);
        _checkTerms(terms);
        _jobs[jobId] = Job(terms.amountUnits, 0, 0, Status.Funded);
        emit JobCreated(jobId, terms.buyer, terms.amountUnits, terms.deadline);
        _pull(paymentToken, msg.sender, terms.amountUnits);
        for (uint256 i = 0; terms.vouchers >> i != 0; ++i) {
            if (terms.vouchers >> i & 1 == 1) _pull(IERC20(address(_voucher(terms, i))), msg.sender, ONE_JOB);
        }
    }

    /// @dev What can be wrong with terms and would harm somebody else, or make the job unable to end.
    function _checkTerms(Terms calldata terms) private view {
        uint256 count = JobLayout.count(terms.lines);
        if (count == 0 || count > MAX_DATASETS || terms.lines.length % JobLayout.LINE_BYTES != 0) {
            revert BadDatasetCount(count);
        }
        if (terms.quorum == 0 || terms.quorum > count) revert BadQuorum(terms.quorum, count);
        if (uint256(terms.vouchers) >> count != 0) revert BadDatasetCount(count);
        if (terms.deadline < block.timestamp + MIN_TIME || terms.deadline > block.timestamp + MAX_TIME) {
            revert BadDeadline(terms.deadline, block.timestamp);
        }
        if (
            terms.disputeWindow > MAX_WINDOW || (terms.disputeWindow == 0) != (terms.arbiter == address(0))
                || terms.silentBps > FULL_BPS
        ) revert BadDispute(terms.disputeWindow, terms.arbiter, terms.silentBps);
        uint256 maxFeeUnits = uint256(terms.amountUnits) * MAX_FEE_BPS / FULL_BPS;
        if (terms.feeUnits > maxFeeUnits) revert FeeTooHigh(terms.feeUnits, maxFeeUnits);
        uint256 needed = uint256(terms.rewardUnits) + terms.feeUnits;
        if (terms.amountUnits < needed) revert AmountTooLow(terms.amountUnits, needed);
    }

    /// @dev The job of these terms, which must be in this state.
    function _find(Terms calldata terms, Status status) private view returns (bytes32 jobId, Job storage held) {
        jobId = hashTerms(terms);
        held = _jobs[jobId];
        if (held.status != status) revert WrongStatus(jobId, held.status);
    }

    /// @dev An index beyond the list is refused: nobody is expected there. Bits that were accepted are within it.
    function _checkBits(Terms calldata terms, uint256 bits) private pure {
        uint256 count = JobLayout.count(terms.lines);
        if (bits >> count != 0) revert BadSignature(count, address(0));
    }

    function _datasetAt(Terms calldata terms, uint256 i) private pure returns (uint256 datasetId) {
        (datasetId,,) = JobLayout.who(terms.lines, i);
    }

    function _attestation(bytes32 jobId, Result calldata result) private view returns (bytes32) {
        bytes32 outcomesHash = keccak256(abi.encodePacked(result.outcomes));
        return _hashTypedDataV4(
            keccak256(
                abi.encode(ATTESTATION, jobId, result.modelHash, result.reportHash, result.worked, outcomesHash)
            )
        );
    }

    /// @dev One signature per bit, by strictly ascending nodes: one key can never count twice towards the quorum.
    function _checkSignatures(Terms calldata terms, uint64 signers, bytes32 digest, bytes[] calldata signatures)
        private
        view
    {
        bytes calldata lines = terms.lines;
        uint256 found = 0;
        uint256 bits = signers; // a word costs less to shift than 64 bits of it
        address before = address(0);
        for (uint256 i = 0; bits >> i != 0; ++i) {
            if (bits >> i & 1 == 0) continue;
            (, address node,) = JobLayout.who(lines, i);
            if (node <= before) revert NodesNotAscending(i);
            before = node;
            if (found == signatures.length) revert QuorumNotMet(found, terms.quorum);
            _checkSignature(found, node, digest, signatures[found]);
            ++found;
        }
        if (found != signatures.length) revert QuorumNotMet(found, signatures.length);
    }

    /// @dev Signature `k` is `node`'s own: by its key (ECDSA, low s), or by the ERC-1271 word of a contract. The key is
    ///      tried first: looking whether a node has code costs as much as the recovery itself.
    function _checkSignature(uint256 k, address node, bytes32 digest, bytes calldata signature) private view {
        if (signature.length == 64) {
            bytes32 r;
            bytes32 vs;
            assembly ("memory-safe") {
                r := calldataload(signature.offset)
                vs := calldataload(add(signature.offset, 32))
            }
            // any error comes with the signer 0
            // slither-disable-next-line unused-return
            (address signer,,) = ECDSA.tryRecover(digest, r, vs);
            if (signer == node && node != address(0)) return;
        }
        if (!SignatureChecker.isValidSignatureNowCalldata(node, digest, signature)) {
            revert BadSignature(k, node);
        }
    }

    function _checkResult(bytes32 jobId, Result calldata result) private view {
        bytes32 given = keccak256(abi.encode(result));
        bytes32 attested = _disputes[jobId].result;
        if (given != attested) revert OtherResult(given, attested);
    }

    /// @dev Credit pools of datasets that worked, burn their vouchers, give back the vouchers of the others, earn the
    ///      fee, return the change. The status is final before this runs.
    function _pay(bytes32 jobId, Terms calldata terms, Result calldata result, uint256 accepted, uint256 paidBps)
        private
    {
        uint256 paidUnits = _payPools(terms, result, accepted, paidBps);
        uint256 feeUnits = terms.feeUnits * paidBps / FULL_BPS;
        uint256 changeUnits = terms.amountUnits - paidUnits - feeUnits;
        emit JobSettled(jobId, paidBps, paidUnits, changeUnits);
        _returnVouchers(terms, paidBps == 0 ? 0 : result.worked);
        _credit(feeRecipient, feeUnits);
        _payBack(terms.buyer, changeUnits);
    }

    /// @dev Refuses a result that pays without work, above a cap or above the amount. Only at the attestation, where the
    ///      job can still be refunded: what is paid after a dispute window is this result again (_checkResult).
    function _checkOutcomes(Terms calldata terms, Result calldata result) private pure {
        uint256[] calldata outcomes = result.outcomes;
        bytes calldata lines = terms.lines;
        uint256 count = JobLayout.count(lines);
        if (outcomes.length != count) revert BadOutcomes(outcomes.length, count);
        uint256 rewardSum = 0;
        uint256 fullUnits = terms.feeUnits;
        uint256 worked = result.worked;
        for (uint256 i = 0; i < count; ++i) {
            (uint256 compute, uint256 reward) = JobLayout.paid(outcomes[i]);
            if (worked >> i & 1 == 0) {
                if (compute + reward != 0) revert PayWithoutWork(i);
                continue;
            }
            (uint256 price, uint256 cap) = JobLayout.units(lines, i);
            if (compute > cap) revert ComputeAboveCap(i, compute, cap);
            unchecked {
                // 64 lines of at most 2**98 each
                rewardSum += reward;
                fullUnits += price + reward + compute;
            }
        }
        if (rewardSum > terms.rewardUnits) revert RewardsExceedPool(rewardSum, terms.rewardUnits);
        if (fullUnits > terms.amountUnits) revert PaymentsExceedAmount(fullUnits, terms.amountUnits);
    }

    /// @dev Credits the pools with `paidBps` of what a checked result gives them; the sum. Who accepted and did not work
    ///      has failed.
    function _payPools(Terms calldata terms, Result calldata result, uint256 accepted, uint256 paidBps)
        private
        returns (uint256 units)
    {
        uint256 worked = result.worked;
        uint256[] calldata outcomes = result.outcomes;
        bytes calldata lines = terms.lines;
        for (uint256 i = 0; i < outcomes.length; ++i) {
            (uint256 datasetId,,) = JobLayout.who(lines, i);
            if (worked >> i & 1 == 0) {
                if (accepted >> i & 1 == 1) _countFailed(datasetId);
                continue;
            }
            (uint256 compute, uint256 shared) = JobLayout.paid(outcomes[i]);
            (uint256 price,) = JobLayout.units(lines, i);
            unchecked {
                // price and reward are revenue of the data, shared with contributors; compute is the hospital's own
                shared += price;
                if (paidBps != FULL_BPS) {
                    shared = shared * paidBps / FULL_BPS;
                    compute = compute * paidBps / FULL_BPS;
                }
                units += shared + compute;
            }
            _settlePool(datasetId, shared, compute);
        }
    }

    /// @dev A lost dispute of the buyer pays those who worked, in equal parts; the first gets what division leaves.
    function _shareBond(Terms calldata terms, uint64 worked) private {
        // what the division leaves is wanted
        // slither-disable-next-line divide-before-multiply
        uint256 part = terms.bondUnits / _bits(worked);
        uint256 left = terms.bondUnits - part * _bits(worked);
        for (uint256 i = 0; worked >> i != 0; ++i) {
            if (worked >> i & 1 == 0) continue;
            _creditPool(_datasetAt(terms, i), 0, part + left);
            left = 0;
        }
    }

    /// @dev Every unit and every voucher back to the buyer.
    function _refundAll(bytes32 jobId, Job storage held, Terms calldata terms, uint256 failed, bool rejected) private {
        held.status = Status.Refunded;
        emit JobRefunded(jobId, terms.amountUnits, rejected);
        for (uint256 i = 0; failed >> i != 0; ++i) {
            if (failed >> i & 1 == 1) _countFailed(_datasetAt(terms, i));
        }
        _returnVouchers(terms, 0);
        _payBack(terms.buyer, terms.amountUnits);
    }

    /// @dev Vouchers of datasets in `spent` are burned, the others go back.
    function _returnVouchers(Terms calldata terms, uint256 spent) private {
        for (uint256 i = 0; terms.vouchers >> i != 0; ++i) {
            if (terms.vouchers >> i & 1 == 0) continue;
            Datatoken datatoken = _voucher(terms, i);
            if (spent >> i & 1 == 1) datatoken.burn(ONE_JOB);
            // our own Datatoken, which reverts or returns true
            // slither-disable-next-line unchecked-transfer
            else datatoken.transfer(terms.buyer, ONE_JOB);
        }
    }

    function _voucher(Terms calldata terms, uint256 i) private view returns (Datatoken) {
        (uint256 datasetId,, uint8 tier) = JobLayout.who(terms.lines, i);
        return Datatoken(registry.tier(datasetId, tier).datatoken);
    }

    function _bits(uint64 set) private pure returns (uint256 count) {
        for (; set != 0; set &= set - 1) {
            ++count;
        }
    }
}

// slither-disable-end reentrancy-events
// slither-disable-end reentrancy-benign,reentrancy-no-eth
// slither-disable-end calls-loop
// slither-disable-end timestamp
