// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {IERC721} from "@openzeppelin/contracts/token/ERC721/IERC721.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {IDatasetRegistry} from "./interfaces/IDatasetRegistry.sol";
import {IRevenuePools} from "./interfaces/IRevenuePools.sol";

/// @dev The payment token came with less (a fee on transfer) or more than was asked for.
error UnexpectedAmountReceived(uint256 received, uint256 expected);

/// @title The pools part of the market: what datasets earned and nobody has taken out yet
abstract contract RevenuePools is IRevenuePools, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    uint256 private constant BPS = 10_000;
    /// @notice The registry whose datasets are paid here.
    IDatasetRegistry public immutable registry;
    /// @notice The one token that this market takes and pays out.
    IERC20 public immutable paymentToken;

    mapping(uint256 datasetId => Pool) private _pools;
    mapping(uint256 datasetId => mapping(uint64 epoch => Epoch)) private _epochs;
    mapping(uint256 datasetId => mapping(uint64 epoch => mapping(address account => uint256))) private _claimed;

    mapping(uint256 datasetId => Standing) private _standings;
    /// @inheritdoc IRevenuePools
    mapping(address account => uint256 units) public credit;

    constructor(IDatasetRegistry registry_, IERC20 paymentToken_) {
        registry = registry_;
        paymentToken = paymentToken_;
    }

    /// @inheritdoc IRevenuePools
    function postContributors(uint256 datasetId, bytes32 root, uint128 totalWeight, string calldata uri) external {
        _onlyOwner(datasetId);
        if (totalWeight == 0) revert ZeroWeight();
        uint64 open = _openEpoch(datasetId);
        if (_epochs[datasetId][open].totalWeight != 0) open += 1;
        _pools[datasetId].epoch = open;
        Epoch storage current = _epochs[datasetId][open];
        current.root = root;
        current.totalWeight = totalWeight;
        emit ContributorsPosted(datasetId, open, root, totalWeight, uri);
    }

    /// @inheritdoc IRevenuePools
    function claim(uint256 datasetId, uint64 epochNumber, address account, uint128 weight, bytes32[] calldata proof)
        external
        nonReentrant
        returns (uint256 units)
    {
        Epoch storage current = _epochs[datasetId][epochNumber];
        if (current.totalWeight == 0) revert NoContributors(datasetId, epochNumber);
        bytes32 leaf = keccak256(bytes.concat(keccak256(abi.encode(datasetId, epochNumber, account, weight))));
        if (!MerkleProof.verifyCalldata(proof, current.root, leaf)) {
            revert BadProof(datasetId, epochNumber, account, weight);
        }
        units = claimable(datasetId, epochNumber, account, weight);
        if (units == 0) revert NothingToClaim(datasetId, epochNumber, account);
        // A tree whose weights sum to more than its total could entitle to more than there is: the cap holds anyway.
        if (current.claimedUnits + units > current.creditedUnits) revert ClaimsExceedCredits(datasetId, epochNumber);
        current.claimedUnits += uint128(units); // fits: at most creditedUnits
        _claimed[datasetId][epochNumber][account] += units;
        emit Claimed(datasetId, epochNumber, account, units);
        paymentToken.safeTransfer(account, units);
    }

    /// @inheritdoc IRevenuePools
    function claimable(uint256 datasetId, uint64 epochNumber, address account, uint128 weight)
        public
        view
        returns (uint256 units)
    {
        Epoch storage current = _epochs[datasetId][epochNumber];
        if (current.totalWeight == 0) return 0;
        uint256 entitled = Math.mulDiv(current.creditedUnits, weight, current.totalWeight);
        uint256 already = _claimed[datasetId][epochNumber][account];
        return entitled > already ? entitled - already : 0;
    }

    /// @inheritdoc IRevenuePools
    function withdrawHospital(uint256 datasetId, address to) external nonReentrant returns (uint256 units) {
        _onlyOwner(datasetId);
        units = _pools[datasetId].hospitalUnits;
        _pools[datasetId].hospitalUnits = 0;
        emit HospitalWithdrawn(datasetId, to, units);
        paymentToken.safeTransfer(to, units);
    }

    /// @inheritdoc IRevenuePools
    function buyDatatokens(uint256 datasetId, uint256 count) external nonReentrant {
        uint256 paidUnits = count * registry.dataset(datasetId).priceUnits;
        _pull(paymentToken, msg.sender, paidUnits);
        _creditPool(datasetId, paidUnits, 0);
        emit DatatokensSold(datasetId, msg.sender, count, paidUnits);
        registry.mintDatatokens(datasetId, msg.sender, count * 1e18);
    }

    /// @inheritdoc IRevenuePools
    function withdrawCredit(address to) external nonReentrant returns (uint256 units) {
        units = credit[msg.sender];
        if (units == 0) revert NothingToWithdraw(msg.sender);
        credit[msg.sender] = 0;
        emit CreditWithdrawn(msg.sender, to, units);
        paymentToken.safeTransfer(to, units);
    }

    /// @inheritdoc IRevenuePools
    function standing(uint256 datasetId) external view returns (Standing memory) {
        return _standings[datasetId];
    }

    /// @inheritdoc IRevenuePools
    function pool(uint256 datasetId) external view returns (Pool memory) {
        return Pool(_pools[datasetId].hospitalUnits, _openEpoch(datasetId));
    }

    /// @inheritdoc IRevenuePools
    function epoch(uint256 datasetId, uint64 epochNumber) external view returns (Epoch memory) {
        return _epochs[datasetId][epochNumber];
    }

    /// @inheritdoc IRevenuePools
    function claimed(uint256 datasetId, uint64 epochNumber, address account) external view returns (uint256) {
        return _claimed[datasetId][epochNumber][account];
    }

    /// @dev Split shared revenue between hospital and contributors; the hospital gets what rounding leaves, and all
    ///      of what is its own.
    function _creditPool(uint256 datasetId, uint256 sharedUnits, uint256 hospitalOnlyUnits) internal {
        uint256 units = sharedUnits + hospitalOnlyUnits;
        if (units == 0) return;
        uint256 contributorUnits = sharedUnits * registry.dataset(datasetId).contributorBps / BPS;
        uint64 open = _openEpoch(datasetId);
        _pools[datasetId].hospitalUnits += SafeCast.toUint128(units - contributorUnits);
        _epochs[datasetId][open].creditedUnits += SafeCast.toUint128(contributorUnits);
        emit RevenueCredited(datasetId, open, units - contributorUnits, contributorUnits);
    }

    function _countAccepted(uint256 datasetId) internal {
        _standings[datasetId].accepted += 1;
    }

    function _countSettled(uint256 datasetId) internal {
        _standings[datasetId].settled += 1;
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

    function _credit(address to, uint256 units) internal {
        if (units == 0) return;
        credit[to] += units;
        emit Credited(to, units);
    }

    /// @dev Never reverts for a receiver that cannot take the token: the units wait as credit instead.
    function _payBack(address to, uint256 units) internal {
        if (units != 0 && !paymentToken.trySafeTransfer(to, units)) _credit(to, units);
    }

    /// @dev Take exactly `units` from `from`: a token that charges for transfers is refused.
    function _pull(IERC20 token, address from, uint256 units) internal {
        if (units == 0) return;
        uint256 before = token.balanceOf(address(this));
        token.safeTransferFrom(from, address(this), units);
        uint256 received = token.balanceOf(address(this)) - before;
        if (received != units) revert UnexpectedAmountReceived(received, units);
    }

    /// @dev An untouched pool is in epoch 1.
    function _openEpoch(uint256 datasetId) private view returns (uint64) {
        uint64 stored = _pools[datasetId].epoch;
        return stored == 0 ? 1 : stored;
    }

    function _onlyOwner(uint256 datasetId) private view {
        registry.dataset(datasetId); // UnknownDataset says more than ERC-721's own refusal
        if (IERC721(address(registry)).ownerOf(datasetId) != msg.sender) {
            revert IDatasetRegistry.NotDatasetOwner(datasetId, msg.sender);
        }
    }
}
