// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title What registry and storefront need of a market: its one token, and a way to pay a dataset's revenue in
interface IRevenueMarket {
    function paymentToken() external view returns (address);
    /// @notice Pulls exactly `units` from the caller into the dataset's pool.
    function payRevenue(uint256 datasetId, uint256 units) external;
}

/// @title Where datatokens are bought, given away within limits, and turned into time of access
/// @notice The price goes into the dataset's pool in the same transaction; fees wait here until their owners take
///         them. Nobody but a fee's owner can take it, nobody can change the platform's part, nothing here pauses.
/// @dev Nothing needs an externally owned account: a multisig approves where others sign an ERC-2612 permit.
interface IStorefront {
    struct Purchase {
        uint256 datasetId;
        uint8 tierId;
        uint32 count; // whole datatokens, 1e18 each
        address market; // the market that the quote was made for: its token is what `maxUnits` counts
        uint256 maxUnits; // the most that the buyer pays, every fee included
    }

    /// @notice What a front-end asks for an order, named by the caller and capped at 5 % of the tier's price.
    struct Fee {
        address recipient; // 0 = no fee
        uint96 units;
    }

    /// @notice An ERC-2612 permit of the buyer for the storefront; deadline 0 = none.
    struct Permit {
        uint256 value;
        uint256 deadline;
        uint8 v;
        bytes32 r;
        bytes32 s;
    }

    struct Quote {
        address market;
        address paymentToken;
        uint256 priceUnits; // into the dataset's pool
        uint256 publishUnits; // to who published the dataset
        uint256 platformUnits; // to the platform
        uint256 totalUnits;
    }

    /// @notice Limits of giving away, in whole datatokens; all are counted over the whole life of the tier.
    struct Limits {
        bool on;
        bool allowListed; // only to accounts on the dataset's allow list
        uint32 perDispense;
        uint32 perAccount; // people have many accounts: only `inAll`, or the allow list, is a hard limit
        uint32 inAll;
    }

    struct PublishFee {
        address recipient;
        uint16 bps;
    }

    event Bought(
        uint256 indexed datasetId,
        uint8 indexed tierId,
        address indexed buyer,
        address paymentToken,
        uint256 count,
        uint256 priceUnits,
        uint256 feeUnits
    );
    event Ordered(
        uint256 indexed datasetId,
        uint8 indexed tierId,
        address indexed consumer,
        address payer,
        uint64 expiry,
        address feeRecipient,
        uint256 feeUnits
    );
    event LimitsSet(uint256 indexed datasetId, uint8 indexed tierId, Limits limits);
    event Dispensed(uint256 indexed datasetId, uint8 indexed tierId, address indexed account, uint256 count);
    event PublishFeeSet(uint256 indexed datasetId, address indexed recipient, uint16 bps);
    event FeeCredited(address indexed paymentToken, address indexed account, uint256 units);
    event FeeWithdrawn(address indexed paymentToken, address indexed account, address to, uint256 units);

    error ZeroCount();
    /// @notice A tier without a price is not sold; the dispenser gives it within limits.
    error NothingToBuy(uint256 datasetId, uint8 tierId);
    /// @notice Price and fees come to more than the buyer agreed to.
    error CostsMore(uint256 units, uint256 maxUnits);
    /// @notice The dataset sells in another market now than the buyer was quoted for.
    error MarketChanged(uint256 datasetId, address quoted, address found);
    /// @notice Denied, not on the allow list, or the dataset is paused or retired.
    error MayNotConsume(uint256 datasetId, address account);
    /// @notice The dataset's market is not allowed (any more).
    error NoMarket(uint256 datasetId);
    /// @notice The tier is a one-job voucher: it opens no time of access.
    error NotOrdered(uint256 datasetId, uint8 tierId);
    /// @notice The caller is neither the dataset's owner nor its manager.
    error NotManager(uint256 datasetId, address caller);
    /// @notice The dispenser of this tier is off, or was set by a former owner.
    error DispenserOff(uint256 datasetId, uint8 tierId);
    error NotAllowListed(uint256 datasetId, address account);
    /// @notice More than a limit of the dispenser leaves.
    error OverLimit(uint256 datasetId, uint8 tierId, uint256 asked, uint256 left);
    /// @notice A publish fee is 1 to 1000 basis points and has a recipient.
    error BadPublishFee(address recipient, uint16 bps);
    /// @notice The publish fee is set once, so that who published can rely on it.
    error PublishFeeAlreadySet(uint256 datasetId);
    error BadPlatform(address platform, uint16 bps);
    /// @notice A front-end asks for more than 5 % of the tier's price, or for units without a recipient.
    error ConsumeFeeTooHigh(uint256 units, uint256 maxUnits);
    /// @notice The token charged for the transfer, or the market took something else than the price.
    error WrongUnits(address paymentToken, uint256 found, uint256 expected);
    error NoFees(address paymentToken, address account);

    /// @notice Buy `count` datatokens for the caller; the units paid, fees included.
    function buy(Purchase calldata purchase, Permit calldata permit) external returns (uint256 paidUnits);
    /// @notice Buy one datatoken and order with it at once, for `consumer`, in one transaction; no datatoken is held.
    function buyAndOrder(Purchase calldata purchase, address consumer, Fee calldata fee, Permit calldata permit)
        external
        returns (uint64 expiry);
    /// @notice Burn one datatoken of the caller (who has allowed it) and open access for `consumer` until now, or
    ///         until the present expiry, plus the tier's time. Access that is open needs no further order.
    /// @param market The market that the fee's units were named for; not looked at when there is no fee.
    function order(uint256 datasetId, uint8 tierId, address consumer, address market, Fee calldata fee)
        external
        returns (uint64 expiry);
    /// @notice Take `count` datatokens for nothing, within the owner's limits.
    function dispense(uint256 datasetId, uint8 tierId, uint32 count) external;

    /// @notice Set a dispenser, by the dataset's owner or manager. It ends with the ownership; what was given counts on.
    function setLimits(uint256 datasetId, uint8 tierId, Limits calldata limits_) external;
    /// @notice The fee of the market that published the dataset, once, by the dataset's owner; on top of each price.
    function setPublishFee(uint256 datasetId, address recipient, uint16 bps) external;
    /// @notice Take all of the caller's fees in one token.
    function withdrawFees(address paymentToken, address to) external returns (uint256 units);

    /// @notice What `buy` would cost now.
    function quote(uint256 datasetId, uint8 tierId, uint32 count) external view returns (Quote memory);
    /// @notice When the access of `consumer` ends (seconds); 0 = there was none.
    function orderExpiry(uint256 datasetId, uint8 tierId, address consumer) external view returns (uint64);
    /// @notice The limits in force; off where a former owner set them.
    function limits(uint256 datasetId, uint8 tierId) external view returns (Limits memory);
    /// @notice Whole datatokens dispensed so far, in all and to `account`.
    function dispensed(uint256 datasetId, uint8 tierId, address account) external view returns (uint32 inAll, uint32 own);
    function publishFee(uint256 datasetId) external view returns (PublishFee memory);
    function fees(address paymentToken, address account) external view returns (uint256 units);
}
