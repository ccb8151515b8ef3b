// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {IERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Permit.sol";
import {IERC721} from "@openzeppelin/contracts/token/ERC721/IERC721.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {Datatoken} from "./Datatoken.sol";
import {IDatasetRegistry} from "./interfaces/IDatasetRegistry.sol";
import {IRevenueMarket, IStorefront} from "./interfaces/IStorefront.sol";

// deadlines and windows are minutes to days; a proposer moves the time of a block by seconds
// slither-disable-start timestamp
// every function that moves a token is nonReentrant, here and in the other half
// slither-disable-start reentrancy-benign

/// @title The shop of the datatokens: fixed prices, a dispenser, orders; no owner, no upgrade, no pause
contract Storefront is IStorefront, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    uint256 private constant BPS = 10_000;
    uint256 private constant ONE = 1e18;
    /// @notice The platform's part is at most 5 % of the price.
    uint16 public constant MAX_PLATFORM_BPS = 500;
    /// @notice The publisher's part is at most 10 % of the price.
    uint16 public constant MAX_PUBLISH_BPS = 1_000;
    /// @notice A front-end's fee for an order is at most 5 % of the tier's price.
    uint16 public constant MAX_CONSUME_BPS = 500;

    struct Dispenser {
        Limits limits;
        uint32 ownership; // of the registry, when the limits were set
        uint32 given;
    }

    IDatasetRegistry public immutable registry;
    /// @notice Whose the platform's fees are.
    address public immutable platform;
    uint16 public immutable platformBps;
    mapping(uint256 datasetId => mapping(uint8 tierId => Dispenser)) private _dispensers;
    mapping(uint256 datasetId => mapping(uint8 tierId => mapping(address account => uint32))) private _taken;
    /// @inheritdoc IStorefront
    mapping(uint256 datasetId => mapping(uint8 tierId => mapping(address consumer => uint64))) public orderExpiry;
    mapping(uint256 datasetId => PublishFee) private _publishFees;
    /// @inheritdoc IStorefront
    mapping(address paymentToken => mapping(address account => uint256 units)) public fees;

    constructor(IDatasetRegistry registry_, address platform_, uint16 platformBps_) {
        if (platformBps_ > MAX_PLATFORM_BPS || platform_ == address(0)) revert BadPlatform(platform_, platformBps_);
        (registry, platform, platformBps) = (registry_, platform_, platformBps_);
    }

    /// @inheritdoc IStorefront
    function buy(Purchase calldata purchase, Permit calldata permit)
        external
        nonReentrant
        returns (uint256 paidUnits)
    {
        paidUnits = _pay(purchase, Fee(address(0), 0), permit);
        registry.mintTier(purchase.datasetId, purchase.tierId, msg.sender, purchase.count * ONE);
    }

    /// @inheritdoc IStorefront
    function buyAndOrder(Purchase calldata purchase, address consumer, Fee calldata fee, Permit calldata permit)
        external
        nonReentrant
        returns (uint64 expiry)
    {
        if (purchase.count != 1) revert OverLimit(purchase.datasetId, purchase.tierId, purchase.count, 1);
        IDatasetRegistry.Tier memory tier = registry.tier(purchase.datasetId, purchase.tierId);
        _checkFee(tier, fee);
        expiry = _open(purchase.datasetId, purchase.tierId, tier, consumer, fee);
        _pay(purchase, fee, permit);
        // Minted and burned although nobody holds it in between: the tier's cap counts every sale.
        registry.mintTier(purchase.datasetId, purchase.tierId, address(this), ONE);
        Datatoken(tier.datatoken).burn(ONE);
    }

    /// @inheritdoc IStorefront
    function order(uint256 datasetId, uint8 tierId, address consumer, address market, Fee calldata fee)
        external
        nonReentrant
        returns (uint64 expiry)
    {
        IDatasetRegistry.Tier memory tier = registry.tier(datasetId, tierId);
        _checkFee(tier, fee);
        expiry = _open(datasetId, tierId, tier, consumer, fee);
        Datatoken(tier.datatoken).burnFrom(msg.sender, ONE);
        if (fee.units > 0) {
            IERC20 token = _token(datasetId, market);
            _credit(token, fee.recipient, fee.units);
            _pull(token, fee.units);
        }
    }

    /// @inheritdoc IStorefront
    function dispense(uint256 datasetId, uint8 tierId, uint32 count) external nonReentrant {
        if (count == 0) revert ZeroCount();
        Limits memory limit = limits(datasetId, tierId);
        if (!limit.on) revert DispenserOff(datasetId, tierId);
        _checkConsumer(datasetId, msg.sender);
        if (limit.allowListed && registry.listing(datasetId, msg.sender) != IDatasetRegistry.Listing.Allowed) {
            revert NotAllowListed(datasetId, msg.sender);
        }
        Dispenser storage dispenser = _dispensers[datasetId][tierId];
        uint32 own = _taken[datasetId][tierId][msg.sender];
        _checkLimit(datasetId, tierId, count, limit.perDispense, 0);
        _checkLimit(datasetId, tierId, count, limit.perAccount, own);
        _checkLimit(datasetId, tierId, count, limit.inAll, dispenser.given);
        _taken[datasetId][tierId][msg.sender] = own + count;
        dispenser.given += count;
        emit Dispensed(datasetId, tierId, msg.sender, count);
        registry.mintTier(datasetId, tierId, msg.sender, count * ONE);
    }

    /// @inheritdoc IStorefront
    function setLimits(uint256 datasetId, uint8 tierId, Limits calldata limits_) external {
        if (!registry.mayManage(datasetId, msg.sender)) revert NotManager(datasetId, msg.sender);
        // asked only for its refusal
        // slither-disable-next-line unused-return
        registry.tier(datasetId, tierId); // reverts for an unknown one
        Dispenser storage dispenser = _dispensers[datasetId][tierId];
        dispenser.limits = limits_;
        dispenser.ownership = registry.standing(datasetId).ownership;
        emit LimitsSet(datasetId, tierId, limits_);
    }

    /// @inheritdoc IStorefront
    function setPublishFee(uint256 datasetId, address recipient, uint16 bps) external {
        // asked only for its refusal
        // slither-disable-next-line unused-return
        registry.dataset(datasetId); // UnknownDataset says more than ERC-721's own refusal
        if (IERC721(address(registry)).ownerOf(datasetId) != msg.sender) {
            revert IDatasetRegistry.NotDatasetOwner(datasetId, msg.sender);
        }
        if (recipient == address(0) || bps == 0 || bps > MAX_PUBLISH_BPS) revert BadPublishFee(recipient, bps);
        if (_publishFees[datasetId].bps != 0) revert PublishFeeAlreadySet(datasetId);
        _publishFees[datasetId] = PublishFee(recipient, bps);
        emit PublishFeeSet(datasetId, recipient, bps);
    }

    /// @inheritdoc IStorefront
    function withdrawFees(address paymentToken, address to) external nonReentrant returns (uint256 units) {
        units = fees[paymentToken][msg.sender];
        if (units == 0) revert NoFees(paymentToken, msg.sender);
        fees[paymentToken][msg.sender] = 0;
        emit FeeWithdrawn(paymentToken, msg.sender, to, units);
        IERC20(paymentToken).safeTransfer(to, units);
    }

    /// @inheritdoc IStorefront
    function quote(uint256 datasetId, uint8 tierId, uint32 count) public view returns (Quote memory asked) {
        asked.priceUnits = uint256(registry.tier(datasetId, tierId).priceUnits) * count;
        (asked.market, asked.paymentToken) = registry.marketOf(datasetId);
        asked.publishUnits = asked.priceUnits * _publishFees[datasetId].bps / BPS;
        asked.platformUnits = asked.priceUnits * platformBps / BPS;
        asked.totalUnits = asked.priceUnits + asked.publishUnits + asked.platformUnits;
    }

    /// @inheritdoc IStorefront
    function limits(uint256 datasetId, uint8 tierId) public view returns (Limits memory found) {
        Dispenser storage dispenser = _dispensers[datasetId][tierId];
        found = dispenser.limits;
        if (found.on && dispenser.ownership != registry.standing(datasetId).ownership) found.on = false;
    }

    /// @inheritdoc IStorefront
    function dispensed(uint256 datasetId, uint8 tierId, address account)
        external
        view
        returns (uint32 inAll, uint32 own)
    {
        return (_dispensers[datasetId][tierId].given, _taken[datasetId][tierId][account]);
    }

    /// @inheritdoc IStorefront
    function publishFee(uint256 datasetId) external view returns (PublishFee memory) {
        return _publishFees[datasetId];
    }

    /// @dev Everything of a purchase but the minting. Fees are credited before a token moves; the price goes on.
    function _pay(Purchase calldata purchase, Fee memory fee, Permit calldata permit) private returns (uint256 units) {
        if (purchase.count == 0) revert ZeroCount();
        _checkConsumer(purchase.datasetId, msg.sender);
        Quote memory asked = quote(purchase.datasetId, purchase.tierId, purchase.count);
        if (asked.priceUnits == 0) revert NothingToBuy(purchase.datasetId, purchase.tierId);
        IERC20 token = _token(purchase.datasetId, purchase.market);
        units = asked.totalUnits + fee.units;
        if (units > purchase.maxUnits) revert CostsMore(units, purchase.maxUnits);
        _credit(token, _publishFees[purchase.datasetId].recipient, asked.publishUnits);
        _credit(token, platform, asked.platformUnits);
        _credit(token, fee.recipient, fee.units);
        emit Bought(
            purchase.datasetId,
            purchase.tierId,
            msg.sender,
            address(token),
            purchase.count,
            asked.priceUnits,
            units - asked.priceUnits
        );
        _usePermit(token, permit);
        // every function of this contract that moves a token is nonReentrant, so nothing else moves between the two
        // slither-disable-next-line reentrancy-balance
        uint256 before = token.balanceOf(address(this));
        _pull(token, units);
        token.forceApprove(asked.market, asked.priceUnits);
        IRevenueMarket(asked.market).payRevenue(purchase.datasetId, asked.priceUnits);
        // A market that took less would keep an allowance on other people's fees.
        uint256 found = token.balanceOf(address(this)) - before;
        if (found != units - asked.priceUnits) revert WrongUnits(address(token), found, units - asked.priceUnits);
    }

    /// @dev A permit that somebody else has already submitted has done its work: only the allowance counts.
    function _usePermit(IERC20 token, Permit calldata permit) private {
        if (permit.deadline == 0) return;
        try IERC20Permit(address(token)).permit(
            msg.sender, address(this), permit.value, permit.deadline, permit.v, permit.r, permit.s
        ) {} catch {}
    }

    /// @dev Take exactly `units` from the caller: a token that charges for transfers is refused.
    function _pull(IERC20 token, uint256 units) private {
        uint256 before = token.balanceOf(address(this));
        token.safeTransferFrom(msg.sender, address(this), units);
        uint256 received = token.balanceOf(address(this)) - before;
        if (received != units) revert WrongUnits(address(token), received, units);
    }

    function _credit(IERC20 token, address account, uint256 units) private {
        if (units == 0) return;
        fees[address(token)][account] += units;
        emit FeeCredited(address(token), account, units);
    }

    /// @dev The token of the dataset's market, which must be the one that the caller was quoted for.
    function _token(uint256 datasetId, address quoted) private view returns (IERC20) {
        (address market, address token) = registry.marketOf(datasetId);
        if (token == address(0)) revert NoMarket(datasetId);
        if (market != quoted) revert MarketChanged(datasetId, quoted, market);
        return IERC20(token);
    }

    /// @dev Open or extend the access of `consumer`.
    function _open(
        uint256 datasetId,
        uint8 tierId,
        IDatasetRegistry.Tier memory tier,
        address consumer,
        Fee calldata fee
    ) private returns (uint64 expiry) {
        if (tier.orderSeconds == 0) revert NotOrdered(datasetId, tierId);
        _checkConsumer(datasetId, consumer);
        uint64 open = orderExpiry[datasetId][tierId][consumer];
        expiry = (open > block.timestamp ? open : SafeCast.toUint64(block.timestamp)) + tier.orderSeconds;
        orderExpiry[datasetId][tierId][consumer] = expiry;
        emit Ordered(datasetId, tierId, consumer, msg.sender, expiry, fee.recipient, fee.units);
    }

    function _checkConsumer(uint256 datasetId, address account) private view {
        if (!registry.mayConsume(datasetId, account)) revert MayNotConsume(datasetId, account);
    }

    function _checkFee(IDatasetRegistry.Tier memory tier, Fee calldata fee) private pure {
        uint256 most = fee.recipient == address(0) ? 0 : uint256(tier.priceUnits) * MAX_CONSUME_BPS / BPS;
        if (fee.units > most) revert ConsumeFeeTooHigh(fee.units, most);
    }

    function _checkLimit(uint256 datasetId, uint8 tierId, uint256 count, uint256 limit, uint256 used) private pure {
        uint256 left = limit > used ? limit - used : 0;
        if (count > left) revert OverLimit(datasetId, tierId, count, left);
    }
}

// slither-disable-end reentrancy-benign
// slither-disable-end timestamp
