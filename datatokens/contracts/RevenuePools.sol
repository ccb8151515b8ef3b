// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {IERC721} from "@openzeppelin/contracts/token/ERC721/IERC721.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {SumTree} from "./SumTree.sol";
import {IDatasetRegistry} from "./interfaces/IDatasetRegistry.sol";
import {IRevenuePools} from "./interfaces/IRevenuePools.sol";

/// @dev The payment token came with less (a fee on transfer) or more than was asked for.
error UnexpectedAmountReceived(uint256 received, uint256 expected);

// deadlines and windows are minutes to days; a proposer moves the time of a block by seconds
// slither-disable-start timestamp
// every function that moves a token is nonReentrant, here and in the other half
// slither-disable-start reentrancy-benign

/// @title The pools part of the market: what datasets earned and who may take it out
abstract contract RevenuePools is IRevenuePools, EIP712, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    /// @notice How long a new contributor list waits, and may be disputed.
    uint256 public constant DISPUTE_WINDOW = 3 days;
    /// @notice How long the arbiter has to rule on a dispute.
    uint256 public constant ARBITER_TIME = 14 days;
    uint256 private constant BPS = 10_000;
    bytes32 private constant CLAIM_TO = keccak256(
        "ClaimTo(address account,address to,uint256 nonce,uint256 deadline,Share[] shares)Share(uint256 datasetId,uint64 epoch,uint64 weight)"
    );
    bytes32 private constant SHARE = keccak256("Share(uint256 datasetId,uint64 epoch,uint64 weight)");

    /// @dev One list, and when the one after it was posted and disputed (unix seconds, good until 2106; 0: not). Kept
    ///      here because the slot of a list that was claimed from is written already, which halves the cost of posting.
    ///      A list beyond the pool's epoch waits: its root is there, and nothing can be claimed against it.
    struct List {
        bytes32 root;
        uint96 startUnits; // the contributors' register when it went live
        uint96 claimedUnits;
        uint32 nextPostedAt;
        uint32 nextDisputedAt;
    }

    /// @notice The registry whose datasets are paid here.
    IDatasetRegistry public immutable registry;
    /// @notice The one token that this market takes and pays out.
    IERC20 public immutable paymentToken;
    /// @notice Who rules on disputed contributor lists; can drop such a list, and nothing else.
    address public immutable arbiter;
    /// @notice What a dispute costs the one who is wrong.
    uint256 public immutable disputeBondUnits;

    mapping(uint256 datasetId => Pool) private _pools;
    mapping(uint256 datasetId => Standing) private _standings; // but for `settled`, which is in the pool's slot
    /// @inheritdoc IRevenuePools
    mapping(address account => uint256 units) public credit;
    mapping(uint256 datasetId => mapping(uint64 epoch => List)) private _lists;
    mapping(uint256 datasetId => address) private _disputers;
    /// @inheritdoc IRevenuePools
    mapping(uint256 datasetId => uint256 units) public withdrawn;
    /// @inheritdoc IRevenuePools
    // written through `taken` in _take
    // slither-disable-next-line uninitialized-state
    mapping(uint256 datasetId => mapping(uint64 epoch => mapping(address account => uint256 units))) public claimed;
    /// @inheritdoc IRevenuePools
    mapping(address account => uint256) public claimNonce;

    constructor(IDatasetRegistry registry_, IERC20 paymentToken_, address arbiter_, uint256 disputeBondUnits_) {
        registry = registry_;
        paymentToken = paymentToken_;
        arbiter = arbiter_;
        // a bond that a pool cannot hold could never be ruled on
        disputeBondUnits = SafeCast.toUint96(disputeBondUnits_);
    }

    // ---- contributor lists

    /// @inheritdoc IRevenuePools
    function postContributors(uint256 datasetId, bytes32 root, string calldata uri) external {
        _onlyOwner(datasetId);
        if (SumTree.weightOf(root) == 0) revert ZeroWeight();
        Pool memory current = _pools[datasetId];
        uint64 next = current.epoch + 1;
        emit ContributorsPosted(datasetId, next, root, uri);
        if (next == 1 && current.contributorUnits == 0) {
            _goLive(datasetId, root);
        } else {
            List storage list = _lists[datasetId][current.epoch];
            if (list.nextDisputedAt != 0) revert AlreadyInDispute(datasetId);
            list.nextPostedAt = uint32(block.timestamp);
            _lists[datasetId][next].root = root;
        }
    }

    /// @inheritdoc IRevenuePools
    function activateContributors(uint256 datasetId) external {
        (Pending memory list,) = _pendingOf(datasetId);
        if (list.disputedAt != 0) revert AlreadyInDispute(datasetId);
        uint256 until = list.postedAt + DISPUTE_WINDOW;
        if (block.timestamp < until) revert DisputeWindowOpen(datasetId, until);
        _goLive(datasetId, list.root);
    }

    /// @inheritdoc IRevenuePools
    function disputeContributors(uint256 datasetId, bytes32 root) external nonReentrant {
        (Pending memory list, List storage before) = _pendingOf(datasetId);
        if (list.root != root) revert AnotherRootPending(datasetId, root, list.root);
        if (list.disputedAt != 0) revert AlreadyInDispute(datasetId);
        uint256 until = list.postedAt + DISPUTE_WINDOW;
        if (block.timestamp >= until) revert DisputeWindowClosed(datasetId, until);
        before.nextDisputedAt = uint32(block.timestamp);
        _disputers[datasetId] = msg.sender;
        emit ContributorsDisputed(datasetId, _pools[datasetId].epoch + 1, root, msg.sender);
        _pull(paymentToken, msg.sender, disputeBondUnits);
    }

    /// @inheritdoc IRevenuePools
    function ruleDispute(uint256 datasetId, bytes32 root, bool upheld) external nonReentrant {
        if (msg.sender != arbiter) revert NotArbiter(arbiter, msg.sender);
        (Pending memory list, List storage before) = _disputedOf(datasetId);
        if (list.root != root) revert AnotherRootPending(datasetId, root, list.root);
        emit DisputeRuled(datasetId, _pools[datasetId].epoch + 1, root, upheld);
        if (upheld) {
            _drop(datasetId, list, before);
        } else {
            before.nextDisputedAt = 0;
            delete _disputers[datasetId];
            _creditPool(datasetId, 0, disputeBondUnits);
        }
    }

    /// @inheritdoc IRevenuePools
    function expireDispute(uint256 datasetId) external nonReentrant {
        (Pending memory list, List storage before) = _disputedOf(datasetId);
        uint256 until = list.disputedAt + ARBITER_TIME;
        if (block.timestamp < until) revert ArbiterHasTime(datasetId, until);
        emit DisputeExpired(datasetId, _pools[datasetId].epoch + 1, list.root);
        _drop(datasetId, list, before);
    }

    // ---- claims

    /// @inheritdoc IRevenuePools
    function claim(Claim[] calldata claims, address to) external nonReentrant returns (uint256 units) {
        return _claim(msg.sender, claims, to);
    }

    /// @inheritdoc IRevenuePools
    function claimOnBehalf(address account, Claim[] calldata claims) external nonReentrant returns (uint256 units) {
        return _claim(account, claims, account);
    }

    /// @inheritdoc IRevenuePools
    function claimFor(address account, Claim[] calldata claims, address to, uint256 deadline, bytes calldata signature)
        external
        nonReentrant
        returns (uint256 units)
    {
        if (block.timestamp > deadline) revert ClaimExpired(deadline, block.timestamp);
        uint256 nonce = claimNonce[account]++;
        bytes32[] memory shares = new bytes32[](claims.length);
        for (uint256 i = 0; i < claims.length; ++i) {
            shares[i] = keccak256(abi.encode(SHARE, claims[i].datasetId, claims[i].epoch, claims[i].weight));
        }
        bytes32 structHash =
            keccak256(abi.encode(CLAIM_TO, account, to, nonce, deadline, keccak256(abi.encodePacked(shares))));
        if (!SignatureChecker.isValidSignatureNowCalldata(account, _hashTypedDataV4(structHash), signature)) {
            revert BadClaimSignature(account, nonce);
        }
        return _claim(account, claims, to);
    }

    /// @inheritdoc IRevenuePools
    function claimable(uint256 datasetId, uint64 epochNumber, address account, uint64 weight)
        external
        view
        returns (uint256 units)
    {
        List storage list = _lists[datasetId][epochNumber];
        if (list.root == 0) return 0;
        uint256 credited = _creditedTo(datasetId, epochNumber, list.startUnits);
        return _left(credited, weight, list.root, claimed[datasetId][epochNumber][account]);
    }

    // ---- money in, and the hospital's money out

    /// @inheritdoc IRevenuePools
    function withdrawHospital(uint256 datasetId, address to) external nonReentrant returns (uint256 units) {
        _onlyOwner(datasetId);
        uint256 earned = _pools[datasetId].hospitalUnits;
        units = earned - withdrawn[datasetId];
        if (units == 0) revert NothingToWithdraw(msg.sender);
        withdrawn[datasetId] = earned;
        emit HospitalWithdrawn(datasetId, to, units);
        paymentToken.safeTransfer(to, units);
    }

    /// @inheritdoc IRevenuePools
    function buyDatatokens(uint256 datasetId, uint256 count) external nonReentrant {
        IDatasetRegistry.Dataset memory listed = registry.dataset(datasetId);
        uint256 paidUnits = count * listed.priceUnits;
        _pull(paymentToken, msg.sender, paidUnits);
        _noteBps(datasetId, listed.contributorBps);
        _creditPool(datasetId, paidUnits, 0);
        emit DatatokensSold(datasetId, msg.sender, count, paidUnits);
        registry.mintDatatokens(datasetId, msg.sender, count * 1e18);
    }

    /// @inheritdoc IRevenuePools
    function payRevenue(uint256 datasetId, uint256 units) external nonReentrant {
        if (units == 0) revert NothingPaid(datasetId);
        _noteBps(datasetId, registry.dataset(datasetId).contributorBps);
        _creditPool(datasetId, units, 0);
        emit RevenuePaid(datasetId, msg.sender, units);
        _pull(paymentToken, msg.sender, units);
    }

    /// @inheritdoc IRevenuePools
    function withdrawCredit(address to) external nonReentrant returns (uint256 units) {
        units = credit[msg.sender];
        if (units == 0) revert NothingToWithdraw(msg.sender);
        credit[msg.sender] = 0;
        emit CreditWithdrawn(msg.sender, to, units);
        paymentToken.safeTransfer(to, units);
    }

    // ---- views

    /// @inheritdoc IRevenuePools
    function standing(uint256 datasetId) external view returns (Standing memory seen) {
        seen = _standings[datasetId];
        seen.settled = _pools[datasetId].settled;
    }

    /// @inheritdoc IRevenuePools
    function pool(uint256 datasetId) external view returns (Pool memory) {
        return _pools[datasetId];
    }

    /// @inheritdoc IRevenuePools
    function epoch(uint256 datasetId, uint64 epochNumber) external view returns (Epoch memory) {
        List storage list = _lists[datasetId][epochNumber];
        Pool storage current = _pools[datasetId];
        // before any list, what was earned waits for the first one
        if (current.epoch == 0 && epochNumber == 1) return Epoch(0, 0, current.contributorUnits, 0);
        bytes32 root = epochNumber > current.epoch ? bytes32(0) : list.root;
        uint256 credited = _creditedTo(datasetId, epochNumber, list.startUnits);
        return Epoch(root, SumTree.weightOf(root), credited, list.claimedUnits);
    }

    /// @inheritdoc IRevenuePools
    function pendingContributors(uint256 datasetId) external view returns (Pending memory list) {
        (list,) = _waiting(datasetId);
    }

    // ---- inside

    /// @dev Add revenue to a dataset's registers: `sharedUnits` is split, and the hospital gets what rounding leaves;
    ///      `hospitalOnlyUnits` is all the hospital's. The tokens must be here already, or come in the same call.
    function _creditPool(uint256 datasetId, uint256 sharedUnits, uint256 hospitalOnlyUnits) internal {
        if (sharedUnits == 0 && hospitalOnlyUnits == 0) return;
        Pool memory current = _pools[datasetId];
        uint256 contributorUnits = sharedUnits * current.contributorBps / BPS;
        current.hospitalUnits += SafeCast.toUint96(sharedUnits - contributorUnits + hospitalOnlyUnits);
        current.contributorUnits += SafeCast.toUint96(contributorUnits);
        _store(datasetId, current);
    }

    /// @dev One write of the whole slot; field by field it would be five.
    function _store(uint256 datasetId, Pool memory pool_) private {
        uint256 word = uint256(pool_.hospitalUnits) | uint256(pool_.contributorUnits) << 96
            | uint256(pool_.contributorBps) << 192 | uint256(pool_.epoch) << 208 | uint256(pool_.settled) << 232;
        Pool storage slot = _pools[datasetId];
        assembly ("memory-safe") {
            sstore(slot.slot, word)
        }
    }

    /// @dev Take exactly `units` from `from`: a token that charges for transfers is refused.
    function _pull(IERC20 token, address from, uint256 units) internal {
        if (units == 0) return;
        uint256 before = token.balanceOf(address(this));
        // `from` is msg.sender in every call of this function
        // slither-disable-next-line arbitrary-send-erc20
        token.safeTransferFrom(from, address(this), units);
        uint256 received = token.balanceOf(address(this)) - before;
        if (received != units) revert UnexpectedAmountReceived(received, units);
    }

    /// @dev Never reverts for a receiver that cannot take the token: the units wait as credit instead.
    function _payBack(address to, uint256 units) internal {
        if (units != 0 && !paymentToken.trySafeTransfer(to, units)) _credit(to, units);
    }

    function _credit(address to, uint256 units) internal {
        if (units == 0) return;
        credit[to] += units;
        emit Credited(to, units);
    }

    /// @dev What the registry says, kept beside the sums, so that paying sixty-four pools asks it nothing.
    function _noteBps(uint256 datasetId, uint16 contributorBps) internal {
        if (_pools[datasetId].contributorBps != contributorBps) _pools[datasetId].contributorBps = contributorBps;
    }

    /// @dev A job is paid for: its revenue, and one more in the hospital's standing. As _creditPool, on the raw slot:
    ///      a settlement does this up to sixty-four times.
    function _settlePool(uint256 datasetId, uint256 sharedUnits, uint256 hospitalOnlyUnits) internal {
        Pool storage slot = _pools[datasetId];
        uint256 word;
        assembly ("memory-safe") {
            word := sload(slot.slot)
        }
        uint256 hospital;
        uint256 contributors;
        uint256 settled = word >> 232;
        unchecked {
            // both amounts are below 2**98, and the basis points at most 10_000
            contributors = sharedUnits * (word >> 192 & type(uint16).max) / BPS;
            hospital = (word & type(uint96).max) + sharedUnits - contributors + hospitalOnlyUnits;
            contributors += word >> 96 & type(uint96).max;
            if (settled != type(uint24).max) ++settled;
        }
        if (hospital > type(uint96).max || contributors > type(uint96).max) revert PoolFull(datasetId);
        word = hospital | contributors << 96 | word << 24 >> 216 << 192 | settled << 232;
        assembly ("memory-safe") {
            sstore(slot.slot, word)
        }
    }

    function _countAccepted(uint256 datasetId) internal {
        _standings[datasetId].accepted += 1;
    }

    function _countFailed(uint256 datasetId) internal {
        _standings[datasetId].failed += 1;
    }

    function _countDisputed(uint256 datasetId) internal {
        _standings[datasetId].disputed += 1;
    }

    function _countLost(uint256 datasetId) internal {
        _standings[datasetId].lost += 1;
    }

    /// @dev The first list also gets what was earned before it; any other starts from here.
    function _goLive(uint256 datasetId, bytes32 root) private {
        Pool storage current = _pools[datasetId];
        uint96 startUnits = current.epoch == 0 ? 0 : current.contributorUnits;
        uint24 number = ++current.epoch;
        _lists[datasetId][number] = List(root, startUnits, 0, 0, 0);
        emit ContributorsLive(datasetId, number, root, startUnits);
    }

    /// @dev Pay the sum of the claims out in one transfer; every register is written before.
    function _claim(address account, Claim[] calldata claims, address to) private returns (uint256 units) {
        for (uint256 i = 0; i < claims.length; ++i) {
            units += _take(account, claims[i]);
        }
        if (units == 0) revert NothingToClaim(account);
        paymentToken.safeTransfer(to, units);
    }

    /// @dev Check one share and note it as claimed.
    function _take(address account, Claim calldata share) private returns (uint256 units) {
        (uint256 datasetId, uint64 number, uint64 weight) = (share.datasetId, share.epoch, share.weight);
        List storage list = _lists[datasetId][number];
        bytes32 root = list.root;
        if (root == 0) revert NoContributors(datasetId, number);
        if (weight == 0) revert ZeroWeight();
        if (SumTree.rootFrom(SumTree.leaf(datasetId, number, account, weight), share.proof) != root) {
            revert BadProof(datasetId, number, account, weight);
        }
        mapping(address => uint256) storage taken = claimed[datasetId][number];
        uint256 credited = _creditedTo(datasetId, number, list.startUnits);
        uint256 already = taken[account];
        units = _left(credited, weight, root, already);
        if (units == 0) return 0;
        // the sum tree alone keeps the claims below the credits; should it ever not, the cap holds anyway
        uint256 total = list.claimedUnits + units;
        if (total > credited) revert ClaimsExceedCredits(datasetId, number);
        list.claimedUnits = uint96(total); // fits: at most the register
        taken[account] = already + units;
        emit Claimed(datasetId, number, account, units);
    }

    /// @dev The weight's part, rounded down, less what was claimed of it. No overflow: `credited` is below 2**96.
    function _left(uint256 credited, uint64 weight, bytes32 root, uint256 already) private pure returns (uint256) {
        unchecked {
            uint256 entitled = credited * weight / SumTree.weightOf(root);
            return entitled > already ? entitled - already : 0;
        }
    }

    /// @dev What the contributors' register grew by while the epoch was live; nothing for a list that waits.
    function _creditedTo(uint256 datasetId, uint64 number, uint256 startUnits) private view returns (uint256) {
        Pool storage current = _pools[datasetId];
        (uint256 live, uint256 units) = (current.epoch, current.contributorUnits);
        if (number == 0 || number > live) return 0;
        return (number == live ? units : _lists[datasetId][number + 1].startUnits) - startUnits;
    }

    /// @dev The list that waits, if any, and the one before it, which keeps its dates.
    function _waiting(uint256 datasetId) private view returns (Pending memory list, List storage before) {
        uint64 live = _pools[datasetId].epoch;
        before = _lists[datasetId][live];
        (list.postedAt, list.disputedAt) = (before.nextPostedAt, before.nextDisputedAt);
        if (list.postedAt == 0) return (list, before);
        (list.root, list.disputer) = (_lists[datasetId][live + 1].root, _disputers[datasetId]);
    }

    function _pendingOf(uint256 datasetId) private view returns (Pending memory list, List storage before) {
        (list, before) = _waiting(datasetId);
        if (list.root == 0) revert NothingPending(datasetId);
    }

    function _disputedOf(uint256 datasetId) private view returns (Pending memory list, List storage before) {
        (list, before) = _waiting(datasetId);
        if (list.disputedAt == 0) revert NotInDispute(datasetId);
    }

    /// @dev The list in dispute will not go live; who disputed it gets the bond back.
    function _drop(uint256 datasetId, Pending memory list, List storage before) private {
        (before.nextPostedAt, before.nextDisputedAt) = (0, 0);
        delete _disputers[datasetId];
        _payBack(list.disputer, disputeBondUnits);
    }

    function _onlyOwner(uint256 datasetId) private view {
        if (IERC721(address(registry)).ownerOf(datasetId) != msg.sender) {
            revert IDatasetRegistry.NotDatasetOwner(datasetId, msg.sender);
        }
    }
}

// slither-disable-end reentrancy-benign
// slither-disable-end timestamp
