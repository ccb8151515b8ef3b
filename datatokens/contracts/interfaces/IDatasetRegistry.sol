// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {INodeRegistry} from "./INodeRegistry.sol";

/// @title Datasets as ERC-721 tokens, each with its own ERC-20 datatokens (1.0 = one job, or one order of a tier)
/// @notice Knows who owns a dataset and who may act for the owner, what it costs, who may consume it, in which market
///         it sells and which key its node signs with. Knows nothing of jobs or money held: those live in the market.
/// @dev Manager, publisher and guardian are the only helpers there are. A *manager* sets prices, tiers, lists, market,
///      manifest, and pauses; a *publisher* sets the manifest only. Both are granted by the owner and both end when the
///      ERC-721 changes hands. The *guardian* vets markets and names the storefront once; it can do nothing else.
interface IDatasetRegistry {
    enum State {
        Active,
        Paused, // nothing is sold or ordered; may become active again
        Retired // as paused, and for good
    }

    enum Listing {
        None,
        Allowed,
        Denied
    }

    struct Dataset {
        address datatoken; // of tier 0: EIP-1167 clone, 18 decimals, 1e18 = one job
        uint96 priceUnits; // price of one job in base units of the market's payment token; 0 = free
        address node; // key that signs acceptances, refusals and attestations for this dataset
        uint16 contributorBps; // contributors' part of every revenue, in basis points of 10_000
        bytes32 manifestHash; // sha-256 of the canonical JSON manifest
    }

    struct Standing {
        State state;
        bool allowListOnly; // only accounts on the allow list may consume
        uint8 tierCount; // tier ids go from 0 to this, exclusive
        uint32 version; // of the manifest, counting from 1
        uint32 ownership; // how often the dataset has changed hands; roles are those of the present one
        address market; // where it sells now: its own choice or the default
        uint64 epsilonMicro; // stated lifetime epsilon in 1e-6; both 0 = not stated
        uint64 deltaAtto; // stated lifetime delta in 1e-18
    }

    struct Tier {
        address datatoken;
        uint96 priceUnits; // of 1e18 datatokens; 0 = not sold, only given or dispensed
        uint32 orderSeconds; // how long one order opens access; 0 = a one-job voucher, cannot be ordered
        uint96 maxSupply; // most that will ever be minted (18 decimals); 0 = no cap
        uint96 minted; // ever (18 decimals); burning does not lower it
        bool closed; // no more is minted; what was minted stays good
    }

    /// @notice A dataset was listed. The manifest itself lives off-chain at `uri`.
    event DatasetListed(
        uint256 indexed datasetId,
        address indexed owner,
        address datatoken,
        address node,
        uint96 priceUnits,
        uint16 contributorBps,
        bytes32 manifestHash,
        string uri
    );
    event PriceChanged(uint256 indexed datasetId, uint96 priceUnits);
    event ManifestChanged(uint256 indexed datasetId, bytes32 manifestHash, string uri, uint32 version);
    /// @notice New jobs must name `node`; jobs already funded keep the key in their terms.
    event NodeKeyChanged(uint256 indexed datasetId, address indexed node);
    event RolesChanged(uint256 indexed datasetId, address indexed account, uint8 roles, uint32 ownership);
    event StateChanged(uint256 indexed datasetId, State state);
    event PrivacyBudgetStated(uint256 indexed datasetId, uint64 epsilonMicro, uint64 deltaAtto);
    event AllowListOnlyChanged(uint256 indexed datasetId, bool allowListOnly);
    event ListingChanged(uint256 indexed datasetId, address indexed account, Listing listing);
    event TierAdded(
        uint256 indexed datasetId,
        uint8 indexed tierId,
        address datatoken,
        uint96 priceUnits,
        uint32 orderSeconds,
        uint96 maxSupply
    );
    event TierPriceChanged(uint256 indexed datasetId, uint8 indexed tierId, uint96 priceUnits);
    event TierClosed(uint256 indexed datasetId, uint8 indexed tierId);
    event MarketAllowed(address indexed market, address indexed paymentToken, bool allowed);
    event MarketChosen(uint256 indexed datasetId, address indexed market);
    event StorefrontSet(address indexed storefront);

    /// @notice The caller does not own the dataset, nor has it any role there.
    error NotDatasetOwner(uint256 datasetId, address caller);
    /// @notice The caller has a role in the dataset's present ownership, but not the one for this.
    error RoleMissing(uint256 datasetId, address caller, uint8 role);
    /// @notice Roles are a sum of MANAGER (1) and PUBLISHER (2).
    error UnknownRole(uint8 roles);
    /// @notice No dataset has this id.
    error UnknownDataset(uint256 datasetId);
    /// @notice The dataset has no tier of this id.
    error UnknownTier(uint256 datasetId, uint8 tierId);
    /// @notice Basis points go from 0 to 10_000.
    error BadContributorBps(uint16 contributorBps);
    /// @notice A node key must not be the zero address.
    error ZeroNodeKey();
    /// @notice Only the dataset's owner, its market (tier 0) or the storefront may mint datatokens.
    error NotMinter(uint256 datasetId, address caller);
    /// @notice At most 16 tiers, the one of the listing included.
    error TooManyTiers(uint256 datasetId);
    /// @notice The tier mints no more.
    error TierIsClosed(uint256 datasetId, uint8 tierId);
    /// @notice The tier would mint more than its cap.
    error MaxSupplyExceeded(uint256 datasetId, uint8 tierId, uint256 minted, uint256 maxSupply);
    /// @notice A price of 0 is not a sale: what is free is given by the owner or by the dispenser, within its limits.
    error NotForSale(uint256 datasetId, uint8 tierId);
    /// @notice Paused or retired: nothing is sold, dispensed or ordered.
    error NotActive(uint256 datasetId, State state);
    /// @notice A retired dataset stays retired.
    error RetiredIsFinal(uint256 datasetId);
    /// @notice Prices are counted in the market's token, so the market changes only while the dataset is paused.
    error NotPaused(uint256 datasetId, State state);
    /// @notice A stated lifetime budget may only fall, in both numbers; more privacy loss needs a new dataset.
    error BudgetMayOnlyFall(uint256 datasetId, uint64 epsilonMicro, uint64 deltaAtto);
    /// @notice Delta is a probability: below 1, so below 1e18 units. Epsilon 0 with delta 0 states nothing.
    error BadPrivacyBudget(uint64 epsilonMicro, uint64 deltaAtto);
    /// @notice The guardian has not allowed this market, or no longer does.
    error MarketNotAllowed(address market);
    /// @notice A market must tell its payment token, and always the same.
    error BadPaymentToken(address market, address paymentToken);
    error NotGuardian(address guardian, address caller);
    /// @notice The key is neither the dataset's own nor an active one of its owner's hospital.
    error NodeMismatch(uint256 datasetId, address given, address registered);
    /// @notice The node registry knows the key, and it may not accept now.
    error NodeKeyNotActive(address node, INodeRegistry.KeyState state);
    /// @notice The dataset sells in another market.
    error OtherMarket(uint256 datasetId, address market);
    /// @notice The dataset is paused or retired, or its lists keep this buyer out.
    error BuyerNotServed(uint256 datasetId, address buyer);
    /// @notice The storefront is named once.
    error StorefrontAlreadySet(address storefront);

    /// @notice List a dataset: mints the ERC-721 to the caller and clones its datatoken. Ids count from 1.
    function listDataset(
        address node,
        uint96 priceUnits,
        uint16 contributorBps,
        bytes32 manifestHash,
        string calldata uri,
        string calldata symbol
    ) external returns (uint256 datasetId, address datatoken);

    /// @notice The price of one job, and of tier 0. By a manager.
    function setPrice(uint256 datasetId, uint96 priceUnits) external;
    /// @notice Publish the next version of the manifest. By a manager or a publisher.
    function setManifest(uint256 datasetId, bytes32 manifestHash, string calldata uri) external;
    /// @notice Rotate the node key. By the owner.
    function setNode(uint256 datasetId, address node) external;
    /// @notice Give `account` exactly these roles (0 takes them away). By the owner; they end with the ownership.
    function setRoles(uint256 datasetId, address account, uint8 roles) external;
    /// @notice Pause or resume, by a manager; retire, which is final, by the owner alone.
    function setState(uint256 datasetId, State state) external;
    /// @notice State the lifetime privacy budget (epsilon in 1e-6, delta in 1e-18), by the owner. It binds later owners
    ///         too: once stated it may only fall. Nodes keep the ledger; this is the promise that they are held to.
    function setPrivacyBudget(uint256 datasetId, uint64 epsilonMicro, uint64 deltaAtto) external;
    /// @notice Open to all but the denied (false), or to the allowed alone (true). By a manager.
    function setAllowListOnly(uint256 datasetId, bool allowListOnly) external;
    /// @notice Put accounts on the allow list or the deny list, or take them off both. By a manager.
    function setListing(uint256 datasetId, address[] calldata accounts, Listing listing_) external;

    /// @notice Another service of the same dataset with a datatoken of its own; at most 16. By a manager.
    function addTier(
        uint256 datasetId,
        string calldata symbol,
        uint96 priceUnits,
        uint32 orderSeconds,
        uint96 maxSupply
    ) external returns (uint8 tierId, address datatoken);
    /// @notice By a manager. For tier 0 the same as `setPrice`.
    function setTierPrice(uint256 datasetId, uint8 tierId, uint96 priceUnits) external;
    /// @notice Mint no more of a tier, for good. By a manager.
    function closeTier(uint256 datasetId, uint8 tierId) external;

    /// @notice Mint `amount` (18 decimals) datatokens of tier 0: vouchers the owner gives away, or the market sells.
    function mintDatatokens(uint256 datasetId, address to, uint256 amount) external;
    /// @notice Mint of any tier, by the owner (unless retired) or the storefront (while active).
    function mintTier(uint256 datasetId, uint8 tierId, address to, uint256 amount) external;

    /// @notice Vet a market (its one payment token is read from it) or take that back. By the guardian. The first one
    ///         ever allowed is the default of every dataset.
    function allowMarket(address market_, bool allowed) external;
    /// @notice Sell in another allowed market; only while paused, as prices count in the market's token. By a manager.
    function setMarket(uint256 datasetId, address market_) external;
    /// @notice Once, by the guardian: the storefront that may mint what it sells and dispenses.
    function setStorefront(address storefront_) external;

    /// @notice Everything a job needs to know of a dataset; reverts UnknownDataset.
    function dataset(uint256 datasetId) external view returns (Dataset memory);
    /// @notice The rest of it; reverts UnknownDataset.
    function standing(uint256 datasetId) external view returns (Standing memory);
    function tier(uint256 datasetId, uint8 tierId) external view returns (Tier memory);
    /// @notice The roles of `account` in the present ownership; the owner needs none.
    function rolesOf(uint256 datasetId, address account) external view returns (uint8);
    /// @notice Whether `account` is the owner or a manager.
    function mayManage(uint256 datasetId, address account) external view returns (bool);
    /// @notice Which list `account` is on.
    function listing(uint256 datasetId, address account) external view returns (Listing);
    /// @notice Active, not denied and, where only the allow list counts, on it.
    function mayConsume(uint256 datasetId, address account) external view returns (bool);
    /// @notice Asked by a market before it writes down that `node` accepts a job of `buyer`; reverts with the reason why
    ///         it must not. A registered node key serves all datasets of its hospital's owner, as long as it is active;
    ///         one that the node registry does not know serves those that name it.
    function checkAcceptance(uint256 datasetId, address node, address buyer)
        external
        view
        returns (uint16 contributorBps);
    /// @notice Where the dataset sells and in what token; token 0 if the market is not allowed (any more).
    function marketOf(uint256 datasetId) external view returns (address market_, address paymentToken);
    /// @notice The payment token of an allowed market; 0 for any other address.
    function allowedToken(address market_) external view returns (address);
    function datasetCount() external view returns (uint256);
    /// @notice The default market: the first that was allowed.
    function market() external view returns (address);
    function storefront() external view returns (address);
    function guardian() external view returns (address);
    /// @notice Who knows the hospitals' node keys.
    function nodes() external view returns (INodeRegistry);
}
