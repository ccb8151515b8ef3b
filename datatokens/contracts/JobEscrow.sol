// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {Datatoken} from "./Datatoken.sol";
import {RevenuePools} from "./RevenuePools.sol";
import {IDatasetRegistry} from "./interfaces/IDatasetRegistry.sol";
import {IJobEscrow} from "./interfaces/IJobEscrow.sol";

/// @title The escrow part of the market: every job is funded once and ends once, settled or refunded
abstract contract JobEscrow is IJobEscrow, EIP712, RevenuePools {
    using SafeERC20 for IERC20;

    /// @notice The hub's fee is at most this part of what the buyer escrows, in basis points of 10_000.
    uint256 public constant MAX_FEE_BPS = 500;
    uint256 private constant MAX_DATASETS = 64;
    uint256 private constant MIN_TIME = 10 minutes;
    uint256 private constant MAX_TIME = 365 days;
    uint256 private constant ONE_JOB = 1e18;
    bytes32 private constant ATTESTATION = keccak256(
        "Attestation(bytes32 jobId,bytes32 modelHash,bytes32 reportHash,uint256 worked,bytes32 rewardsHash)"
    );
    bytes32 private constant REJECTION = keccak256("Rejection(bytes32 jobId,bytes32 reasonHash)");

    /// @notice Whose credit the fee of a settled job goes to.
    address public immutable feeRecipient;
    mapping(bytes32 jobId => Job) private _jobs;
    /// @inheritdoc IJobEscrow
    mapping(address account => uint256 units) public credit;

    constructor(address feeRecipient_) EIP712("datahub", "1") {
        feeRecipient = feeRecipient_;
    }

    /// @inheritdoc IJobEscrow
    function createJob(Terms calldata terms) external nonReentrant returns (bytes32 jobId) {
        if (msg.sender != terms.buyer) revert NotBuyer(terms.buyer, msg.sender);
        jobId = hashTerms(terms);
        if (_jobs[jobId].status != Status.None) revert JobExists(jobId);
        uint256 amountUnits = _checkTerms(terms);
        uint256 maxFeeUnits = amountUnits * MAX_FEE_BPS / 10_000;
        if (terms.feeUnits > maxFeeUnits) revert FeeTooHigh(terms.feeUnits, maxFeeUnits);
        _jobs[jobId] = Job(SafeCast.toUint96(amountUnits), terms.deadline, Status.Funded);
        emit JobCreated(jobId, terms.buyer, amountUnits, terms);
        _pull(paymentToken, msg.sender, amountUnits);
        for (uint256 i = 0; i < terms.datasets.length; ++i) {
            if (terms.datasets[i].voucher) {
                IERC20 datatoken = IERC20(registry.dataset(terms.datasets[i].datasetId).datatoken);
                _pull(datatoken, msg.sender, ONE_JOB);
            }
        }
    }

    /// @inheritdoc IJobEscrow
    function settle(
        Terms calldata terms,
        Result calldata result,
        uint256[] calldata signers,
        bytes[] calldata signatures
    ) external nonReentrant {
        bytes32 jobId = _end(terms, Status.Settled);
        if (block.timestamp > terms.deadline) revert DeadlinePassed(terms.deadline, block.timestamp);
        _checkWorked(terms, result.worked);
        bytes32 digest = _hashTypedDataV4(
            keccak256(
                abi.encode(
                    ATTESTATION,
                    jobId,
                    result.modelHash,
                    result.reportHash,
                    result.worked,
                    keccak256(abi.encodePacked(result.rewardUnits))
                )
            )
        );
        if (signers.length < terms.quorum || signatures.length != signers.length) {
            revert QuorumNotMet(Math.min(signers.length, signatures.length), terms.quorum);
        }
        for (uint256 k = 0; k < signers.length; ++k) {
            _checkSigner(terms, signers, k);
            if (result.worked >> signers[k] & 1 == 0) revert RewardWithoutWork(signers[k]);
            _checkSignature(k, terms.datasets[signers[k]].node, digest, signatures[k]);
        }
        uint256 paidUnits = _pay(terms, result);
        uint256 changeUnits = _amountOf(terms) - paidUnits - terms.feeUnits;
        emit JobSettled(jobId, result.modelHash, result.reportHash, result.worked, paidUnits, changeUnits);
        if (terms.feeUnits > 0) {
            credit[feeRecipient] += terms.feeUnits;
            emit Credited(feeRecipient, terms.feeUnits);
        }
        _payBack(terms.buyer, changeUnits);
    }

    /// @inheritdoc IJobEscrow
    function refund(Terms calldata terms) external nonReentrant {
        bytes32 jobId = _end(terms, Status.Refunded);
        if (block.timestamp <= terms.deadline) revert DeadlineNotPassed(terms.deadline, block.timestamp);
        _refundAll(jobId, terms, false);
    }

    /// @inheritdoc IJobEscrow
    function refundRejected(
        Terms calldata terms,
        uint256[] calldata signers,
        bytes32[] calldata reasonHashes,
        bytes[] calldata signatures
    ) external nonReentrant {
        bytes32 jobId = _end(terms, Status.Refunded);
        uint256 needed = terms.datasets.length - terms.quorum + 1;
        if (signers.length < needed || signatures.length != signers.length || reasonHashes.length != signers.length) {
            revert QuorumNotMet(Math.min(Math.min(signers.length, signatures.length), reasonHashes.length), needed);
        }
        for (uint256 k = 0; k < signers.length; ++k) {
            _checkSigner(terms, signers, k);
            bytes32 digest = _hashTypedDataV4(keccak256(abi.encode(REJECTION, jobId, reasonHashes[k])));
            _checkSignature(k, terms.datasets[signers[k]].node, digest, signatures[k]);
        }
        _refundAll(jobId, terms, true);
    }

    /// @inheritdoc IJobEscrow
    function withdrawCredit(address to) external nonReentrant returns (uint256 units) {
        units = credit[msg.sender];
        if (units == 0) revert NothingToWithdraw(msg.sender);
        credit[msg.sender] = 0;
        emit CreditWithdrawn(msg.sender, to, units);
        paymentToken.safeTransfer(to, units);
    }

    /// @inheritdoc IJobEscrow
    function job(bytes32 jobId) external view returns (Job memory) {
        return _jobs[jobId];
    }

    /// @inheritdoc IJobEscrow
    function hashTerms(Terms calldata terms) public view returns (bytes32) {
        return keccak256(abi.encode(block.chainid, address(this), keccak256(abi.encode(terms))));
    }

    /// @dev The job's one end: funded -> `status`. Every path out of Funded goes through here, before money moves.
    function _end(Terms calldata terms, Status status) private returns (bytes32 jobId) {
        jobId = hashTerms(terms);
        if (_jobs[jobId].status != Status.Funded) revert WrongStatus(jobId, _jobs[jobId].status);
        _jobs[jobId].status = status;
    }

    /// @dev Everything about terms that can be wrong at creation; returns what the buyer owes.
    function _checkTerms(Terms calldata terms) private view returns (uint256) {
        uint256 count = terms.datasets.length;
        if (count == 0 || count > MAX_DATASETS) revert BadDatasetCount(count);
        if (terms.quorum == 0 || terms.quorum > count) revert BadQuorum(terms.quorum, count);
        if (terms.deadline < block.timestamp + MIN_TIME || terms.deadline > block.timestamp + MAX_TIME) {
            revert BadDeadline(terms.deadline, block.timestamp);
        }
        for (uint256 i = 0; i < count; ++i) {
            DatasetTerm calldata line = terms.datasets[i];
            // strictly ascending node keys: one key can never count twice towards the quorum
            if (i > 0 && line.node <= terms.datasets[i - 1].node) revert NodesNotAscending(i);
            IDatasetRegistry.Dataset memory listed = registry.dataset(line.datasetId);
            if (line.node != listed.node) revert NodeMismatch(line.datasetId, line.node, listed.node);
            uint256 price = line.voucher ? 0 : listed.priceUnits;
            if (line.priceUnits != price) revert PriceMismatch(line.datasetId, line.priceUnits, price);
        }
        return _amountOf(terms);
    }

    /// @dev Prices + reward pool + fee; 66 numbers below 2**96 cannot overflow.
    function _amountOf(Terms calldata terms) private pure returns (uint256 units) {
        units = uint256(terms.rewardUnits) + terms.feeUnits;
        for (uint256 i = 0; i < terms.datasets.length; ++i) {
            units += terms.datasets[i].priceUnits;
        }
    }

    /// @dev At least a quorum of the datasets worked, and no bit names a dataset that the job does not have.
    function _checkWorked(Terms calldata terms, uint256 worked) private pure {
        uint256 count = terms.datasets.length;
        if (worked >> count != 0) revert BadPayouts(Math.log2(worked) + 1, count);
        uint256 bits = 0;
        for (uint256 i = 0; i < count; ++i) {
            bits += worked >> i & 1;
        }
        if (bits < terms.quorum) revert QuorumNotMet(bits, terms.quorum);
    }

    /// @dev Strictly ascending and inside the list, so no index counts twice. Address 0: nobody is expected there.
    function _checkSigner(Terms calldata terms, uint256[] calldata signers, uint256 k) private pure {
        if (signers[k] >= terms.datasets.length || (k > 0 && signers[k] <= signers[k - 1])) {
            revert BadSignature(k, address(0));
        }
    }

    /// @dev Signature `k` is `node`'s own: by its key (ECDSA) or, where the node is a contract, by its ERC-1271 word.
    function _checkSignature(uint256 k, address node, bytes32 digest, bytes calldata signature) private view {
        if (!SignatureChecker.isValidSignatureNowCalldata(node, digest, signature)) revert BadSignature(k, node);
    }

    /// @dev Credit pools of datasets that worked, burn their vouchers, give back the vouchers of the others.
    function _pay(Terms calldata terms, Result calldata result) private returns (uint256 paidUnits) {
        uint256 count = terms.datasets.length;
        if (result.rewardUnits.length != count) revert BadPayouts(result.rewardUnits.length, count);
        uint256 rewardSum = 0;
        for (uint256 i = 0; i < count; ++i) {
            DatasetTerm calldata line = terms.datasets[i];
            uint256 reward = result.rewardUnits[i];
            bool worked = result.worked >> i & 1 == 1;
            if (reward > 0 && !worked) revert RewardWithoutWork(i);
            rewardSum += reward;
            if (worked) {
                paidUnits += reward + line.priceUnits;
                _creditPool(line.datasetId, reward + line.priceUnits, 0);
            }
            if (line.voucher) {
                Datatoken datatoken = Datatoken(registry.dataset(line.datasetId).datatoken);
                if (worked) datatoken.burn(ONE_JOB);
                else datatoken.transfer(terms.buyer, ONE_JOB);
            }
        }
        if (rewardSum > terms.rewardUnits) revert RewardsExceedPool(rewardSum, terms.rewardUnits);
    }

    /// @dev Every unit and every voucher back to the buyer; `_end` has closed the job already.
    function _refundAll(bytes32 jobId, Terms calldata terms, bool rejected) private {
        uint256 units = _amountOf(terms);
        emit JobRefunded(jobId, units, rejected);
        for (uint256 i = 0; i < terms.datasets.length; ++i) {
            if (terms.datasets[i].voucher) {
                Datatoken(registry.dataset(terms.datasets[i].datasetId).datatoken).transfer(terms.buyer, ONE_JOB);
            }
        }
        _payBack(terms.buyer, units);
    }

    /// @dev Never reverts for a receiver that cannot take the token: the units wait as credit instead.
    function _payBack(address to, uint256 units) internal override {
        if (units == 0) return;
        if (!paymentToken.trySafeTransfer(to, units)) {
            credit[to] += units;
            emit Credited(to, units);
        }
    }
}
