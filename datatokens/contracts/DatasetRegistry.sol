// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ERC721} from "@openzeppelin/contracts/token/ERC721/ERC721.sol";
import {Clones} from "@openzeppelin/contracts/proxy/Clones.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {Datatoken} from "./Datatoken.sol";
import {IDatasetRegistry} from "./interfaces/IDatasetRegistry.sol";
import {INodeRegistry} from "./interfaces/INodeRegistry.sol";
import {IRevenueMarket} from "./interfaces/IStorefront.sol";

/// @title Datasets as one ERC-721 collection; no upgrade, nothing to pause but by each dataset's owner
contract DatasetRegistry is ERC721, IDatasetRegistry {
    uint16 private constant BPS = 10_000;
    uint8 private constant MAX_TIERS = 16;
    uint64 private constant ATTO = 1e18;
    /// @notice Role bits.
    uint8 public constant MANAGER = 1;
    uint8 public constant PUBLISHER = 2;

    /// @dev Three slots, all that listing writes besides the ERC-721.
    struct Record {
        address datatoken;
        uint96 priceUnits;
        address node;
        uint16 contributorBps;
        uint32 version;
        uint32 ownership;
        uint8 extraTiers; // besides tier 0
        uint8 standing; // bits 0-1: State; bit 2: allow list only
        bytes32 manifestHash;
    }

    struct Service {
        address datatoken; // unused in tier 0, whose token and price are in the record
        uint96 priceUnits;
        uint32 orderSeconds;
        uint96 maxSupply;
        uint96 minted;
        bool closed;
    }

    struct Budget {
        uint64 epsilonMicro;
        uint64 deltaAtto;
    }

    address public immutable datatokenTemplate;
    /// @inheritdoc IDatasetRegistry
    address public immutable guardian;
    /// @inheritdoc IDatasetRegistry
    INodeRegistry public immutable nodes;
    /// @inheritdoc IDatasetRegistry
    address public market;
    /// @inheritdoc IDatasetRegistry
    address public storefront;
    /// @inheritdoc IDatasetRegistry
    uint256 public datasetCount;
    /// @inheritdoc IDatasetRegistry
    mapping(address market => address paymentToken) public allowedToken;
    mapping(address market => address paymentToken) private _knownToken;
    mapping(uint256 datasetId => Record) private _records;
    mapping(uint256 datasetId => mapping(uint8 tierId => Service)) private _services;
    mapping(uint256 datasetId => mapping(uint32 ownership => mapping(address account => uint8))) private _roles;
    /// @inheritdoc IDatasetRegistry
    mapping(uint256 datasetId => mapping(address account => Listing)) public listing;
    mapping(uint256 datasetId => address) private _chosenMarket;
    mapping(uint256 datasetId => Budget) private _budgets;

    constructor(address guardian_, INodeRegistry nodes_) ERC721("datahub dataset", "DATASET") {
        // without a guardian no market is ever allowed: visible at once, and nothing to lose
        // slither-disable-next-line missing-zero-check
        guardian = guardian_;
        nodes = nodes_;
        datatokenTemplate = address(new Datatoken());
    }

    modifier onlyDatasetOwner(uint256 datasetId) {
        if (_known(datasetId) != msg.sender) revert NotDatasetOwner(datasetId, msg.sender);
        _;
    }

    modifier onlyRole(uint256 datasetId, uint8 roles) {
        if (_known(datasetId) != msg.sender) {
            uint8 held = rolesOf(datasetId, msg.sender);
            if (held == 0) revert NotDatasetOwner(datasetId, msg.sender);
            if (held & roles == 0) revert RoleMissing(datasetId, msg.sender, roles);
        }
        _;
    }

    modifier onlyGuardian() {
        if (msg.sender != guardian) revert NotGuardian(guardian, msg.sender);
        _;
    }

    /// @inheritdoc IDatasetRegistry
    function listDataset(
        address node,
        uint96 priceUnits,
        uint16 contributorBps,
        bytes32 manifestHash,
        string calldata uri,
        string calldata symbol_
    ) external returns (uint256 datasetId, address datatoken) {
        if (node == address(0)) revert ZeroNodeKey();
        if (contributorBps > BPS) revert BadContributorBps(contributorBps);
        datasetId = ++datasetCount;
        datatoken = _clone(datasetId, 0, symbol_);
        _records[datasetId] = Record(datatoken, priceUnits, node, contributorBps, 1, 0, 0, 0, manifestHash);
        // _mint, not _safeMint: no callback into a stranger's contract; a hospital's multisig can hold ERC-721 anyway
        _mint(msg.sender, datasetId);
        emit DatasetListed(datasetId, msg.sender, datatoken, node, priceUnits, contributorBps, manifestHash, uri);
    }

    /// @inheritdoc IDatasetRegistry
    function setPrice(uint256 datasetId, uint96 priceUnits) external onlyRole(datasetId, MANAGER) {
        _setTierPrice(datasetId, 0, priceUnits);
    }

    /// @inheritdoc IDatasetRegistry
    function setManifest(uint256 datasetId, bytes32 manifestHash, string calldata uri)
        external
        onlyRole(datasetId, MANAGER | PUBLISHER)
    {
        Record storage record = _records[datasetId];
        record.manifestHash = manifestHash;
        emit ManifestChanged(datasetId, manifestHash, uri, ++record.version);
    }

    /// @inheritdoc IDatasetRegistry
    function setNode(uint256 datasetId, address node) external onlyDatasetOwner(datasetId) {
        if (node == address(0)) revert ZeroNodeKey();
        _records[datasetId].node = node;
        emit NodeKeyChanged(datasetId, node);
    }

    /// @inheritdoc IDatasetRegistry
    function setRoles(uint256 datasetId, address account, uint8 roles) external onlyDatasetOwner(datasetId) {
        if (roles > (MANAGER | PUBLISHER)) revert UnknownRole(roles);
        uint32 ownership = _records[datasetId].ownership;
        _roles[datasetId][ownership][account] = roles;
        emit RolesChanged(datasetId, account, roles, ownership);
    }

    /// @inheritdoc IDatasetRegistry
    function setState(uint256 datasetId, State state) external onlyRole(datasetId, MANAGER) {
        Record storage record = _records[datasetId];
        if (_state(record) == State.Retired) revert RetiredIsFinal(datasetId);
        if (state == State.Retired && _ownerOf(datasetId) != msg.sender) revert NotDatasetOwner(datasetId, msg.sender);
        record.standing = record.standing & 4 | uint8(state);
        emit StateChanged(datasetId, state);
    }

    /// @inheritdoc IDatasetRegistry
    function setPrivacyBudget(uint256 datasetId, uint64 epsilonMicro, uint64 deltaAtto)
        external
        onlyDatasetOwner(datasetId)
    {
        if (deltaAtto >= ATTO || (epsilonMicro == 0 && deltaAtto == 0)) revert BadPrivacyBudget(epsilonMicro, deltaAtto);
        Budget storage budget = _budgets[datasetId];
        bool stated = budget.epsilonMicro != 0 || budget.deltaAtto != 0;
        if (stated && (epsilonMicro > budget.epsilonMicro || deltaAtto > budget.deltaAtto)) {
            revert BudgetMayOnlyFall(datasetId, budget.epsilonMicro, budget.deltaAtto);
        }
        (budget.epsilonMicro, budget.deltaAtto) = (epsilonMicro, deltaAtto);
        emit PrivacyBudgetStated(datasetId, epsilonMicro, deltaAtto);
    }

    /// @inheritdoc IDatasetRegistry
    function setAllowListOnly(uint256 datasetId, bool allowListOnly) external onlyRole(datasetId, MANAGER) {
        Record storage record = _records[datasetId];
        record.standing = record.standing & 3 | (allowListOnly ? 4 : 0);
        emit AllowListOnlyChanged(datasetId, allowListOnly);
    }

    /// @inheritdoc IDatasetRegistry
    function setListing(uint256 datasetId, address[] calldata accounts, Listing listing_)
        external
        onlyRole(datasetId, MANAGER)
    {
        for (uint256 i = 0; i < accounts.length; ++i) {
            listing[datasetId][accounts[i]] = listing_;
            emit ListingChanged(datasetId, accounts[i], listing_);
        }
    }

    /// @inheritdoc IDatasetRegistry
    function addTier(
        uint256 datasetId,
        string calldata symbol_,
        uint96 priceUnits,
        uint32 orderSeconds,
        uint96 maxSupply
    ) external onlyRole(datasetId, MANAGER) returns (uint8 tierId, address datatoken) {
        tierId = _records[datasetId].extraTiers + 1;
        if (tierId >= MAX_TIERS) revert TooManyTiers(datasetId);
        _records[datasetId].extraTiers = tierId;
        datatoken = _clone(datasetId, tierId, symbol_);
        _services[datasetId][tierId] = Service(datatoken, priceUnits, orderSeconds, maxSupply, 0, false);
        emit TierAdded(datasetId, tierId, datatoken, priceUnits, orderSeconds, maxSupply);
    }

    /// @inheritdoc IDatasetRegistry
    function setTierPrice(uint256 datasetId, uint8 tierId, uint96 priceUnits) external onlyRole(datasetId, MANAGER) {
        _setTierPrice(datasetId, tierId, priceUnits);
    }

    /// @inheritdoc IDatasetRegistry
    function closeTier(uint256 datasetId, uint8 tierId) external onlyRole(datasetId, MANAGER) {
        _knownTier(datasetId, tierId);
        _services[datasetId][tierId].closed = true;
        emit TierClosed(datasetId, tierId);
    }

    /// @inheritdoc IDatasetRegistry
    function mintDatatokens(uint256 datasetId, address to, uint256 amount) external {
        if (_known(datasetId) == msg.sender) {
            _mintTier(datasetId, 0, to, amount, false);
            return;
        }
        (address selling, address paymentToken) = marketOf(datasetId);
        if (msg.sender != selling || paymentToken == address(0)) revert NotMinter(datasetId, msg.sender);
        // The market takes price times count; at a price of 0 that would be vouchers for ever and for nothing.
        if (_records[datasetId].priceUnits == 0) revert NotForSale(datasetId, 0);
        _mintTier(datasetId, 0, to, amount, true);
    }

    /// @inheritdoc IDatasetRegistry
    function mintTier(uint256 datasetId, uint8 tierId, address to, uint256 amount) external {
        bool owner = _known(datasetId) == msg.sender;
        if (!owner && msg.sender != storefront) revert NotMinter(datasetId, msg.sender);
        _mintTier(datasetId, tierId, to, amount, !owner);
    }

    /// @inheritdoc IDatasetRegistry
    function allowMarket(address market_, bool allowed) external onlyGuardian {
        address token = allowed ? IRevenueMarket(market_).paymentToken() : address(0);
        if (allowed) {
            // Prices of datasets that chose this market count in its token: allowed again, it must be the same one.
            address before = _knownToken[market_];
            if (token == address(0) || (before != address(0) && before != token)) revert BadPaymentToken(market_, token);
            _knownToken[market_] = token;
            // slither-disable-next-line missing-zero-check
            if (market == address(0)) market = market_; // not 0: it has answered paymentToken() above
        }
        allowedToken[market_] = token;
        emit MarketAllowed(market_, token, allowed);
    }

    /// @inheritdoc IDatasetRegistry
    function setMarket(uint256 datasetId, address market_) external onlyRole(datasetId, MANAGER) {
        if (allowedToken[market_] == address(0)) revert MarketNotAllowed(market_);
        State state = _state(_records[datasetId]);
        if (state != State.Paused) revert NotPaused(datasetId, state);
        _chosenMarket[datasetId] = market_;
        emit MarketChosen(datasetId, market_);
    }

    /// @inheritdoc IDatasetRegistry
    function setStorefront(address storefront_) external onlyGuardian {
        if (storefront != address(0)) revert StorefrontAlreadySet(storefront);
        // 0 names none, as before
        // slither-disable-next-line missing-zero-check
        storefront = storefront_;
        emit StorefrontSet(storefront_);
    }

    /// @inheritdoc IDatasetRegistry
    function dataset(uint256 datasetId) external view returns (Dataset memory) {
        _known(datasetId);
        Record storage record = _records[datasetId];
        return
            Dataset(record.datatoken, record.priceUnits, record.node, record.contributorBps, record.manifestHash);
    }

    /// @inheritdoc IDatasetRegistry
    function standing(uint256 datasetId) external view returns (Standing memory) {
        _known(datasetId);
        Record storage record = _records[datasetId];
        Budget storage budget = _budgets[datasetId];
        (address selling,) = marketOf(datasetId);
        return Standing(
            _state(record),
            record.standing & 4 != 0,
            record.extraTiers + 1,
            record.version,
            record.ownership,
            selling,
            budget.epsilonMicro,
            budget.deltaAtto
        );
    }

    /// @inheritdoc IDatasetRegistry
    function tier(uint256 datasetId, uint8 tierId) external view returns (Tier memory) {
        _known(datasetId);
        _knownTier(datasetId, tierId);
        Service storage service = _services[datasetId][tierId];
        Record storage record = _records[datasetId];
        return Tier(
            tierId == 0 ? record.datatoken : service.datatoken,
            tierId == 0 ? record.priceUnits : service.priceUnits,
            service.orderSeconds,
            service.maxSupply,
            service.minted,
            service.closed
        );
    }

    /// @inheritdoc IDatasetRegistry
    function rolesOf(uint256 datasetId, address account) public view returns (uint8) {
        return _roles[datasetId][_records[datasetId].ownership][account];
    }

    /// @inheritdoc IDatasetRegistry
    function mayManage(uint256 datasetId, address account) external view returns (bool) {
        return _known(datasetId) == account || rolesOf(datasetId, account) & MANAGER != 0;
    }

    /// @inheritdoc IDatasetRegistry
    function mayConsume(uint256 datasetId, address account) external view returns (bool) {
        _known(datasetId);
        return _serves(datasetId, _records[datasetId], account);
    }

    /// @inheritdoc IDatasetRegistry
    function checkAcceptance(uint256 datasetId, address node, address buyer)
        external
        view
        returns (uint16 contributorBps)
    {
        Record storage record = _records[datasetId];
        (INodeRegistry.KeyState state, address hospital) = nodes.keyStatus(node);
        if (state != INodeRegistry.KeyState.Unknown && state != INodeRegistry.KeyState.Active) {
            revert NodeKeyNotActive(node, state);
        }
        address named = record.node;
        if (named == address(0)) revert UnknownDataset(datasetId);
        if (node != named && (hospital == address(0) || hospital != _ownerOf(datasetId))) {
            revert NodeMismatch(datasetId, node, named);
        }
        address selling = _chosenMarket[datasetId];
        if (selling == address(0)) selling = market;
        if (selling != msg.sender) revert OtherMarket(datasetId, selling);
        if (!_serves(datasetId, record, buyer)) revert BuyerNotServed(datasetId, buyer);
        return record.contributorBps;
    }

    /// @inheritdoc IDatasetRegistry
    function marketOf(uint256 datasetId) public view returns (address market_, address paymentToken) {
        market_ = _chosenMarket[datasetId];
        if (market_ == address(0)) market_ = market;
        paymentToken = allowedToken[market_];
    }

    /// @notice ERC-165: ERC-721, its metadata and this registry.
    function supportsInterface(bytes4 interfaceId) public view override returns (bool) {
        return interfaceId == type(IDatasetRegistry).interfaceId || super.supportsInterface(interfaceId);
    }

    /// @dev Every change of hands starts a new ownership: roles, which are kept per ownership, are gone without a loop.
    function _update(address to, uint256 datasetId, address auth) internal override returns (address from) {
        from = super._update(to, datasetId, auth);
        if (from != address(0)) ++_records[datasetId].ownership;
    }

    function _setTierPrice(uint256 datasetId, uint8 tierId, uint96 priceUnits) private {
        _knownTier(datasetId, tierId);
        if (tierId == 0) {
            _records[datasetId].priceUnits = priceUnits;
            emit PriceChanged(datasetId, priceUnits);
        } else {
            _services[datasetId][tierId].priceUnits = priceUnits;
            emit TierPriceChanged(datasetId, tierId, priceUnits);
        }
    }

    /// @dev A sale needs an active dataset; the owner's gift only one that is not retired.
    function _mintTier(uint256 datasetId, uint8 tierId, address to, uint256 amount, bool sale) private {
        _knownTier(datasetId, tierId);
        State state = _state(_records[datasetId]);
        if (state == State.Retired || (sale && state != State.Active)) revert NotActive(datasetId, state);
        Service storage service = _services[datasetId][tierId];
        if (service.closed) revert TierIsClosed(datasetId, tierId);
        uint256 minted = service.minted + amount;
        if (service.maxSupply != 0 && minted > service.maxSupply) {
            revert MaxSupplyExceeded(datasetId, tierId, minted, service.maxSupply);
        }
        service.minted = SafeCast.toUint96(minted);
        Datatoken(tierId == 0 ? _records[datasetId].datatoken : service.datatoken).mint(to, amount);
    }

    function _clone(uint256 datasetId, uint8 tierId, string calldata symbol_) private returns (address) {
        bytes memory arguments = abi.encodePacked(uint64(datasetId), tierId, symbol_);
        return Clones.cloneWithImmutableArgs(datatokenTemplate, arguments);
    }

    function _serves(uint256 datasetId, Record storage record, address account) private view returns (bool) {
        if (_state(record) != State.Active) return false;
        Listing on = listing[datasetId][account];
        return on == Listing.Allowed || (on == Listing.None && record.standing & 4 == 0);
    }

    function _state(Record storage record) private view returns (State) {
        return State(record.standing & 3);
    }

    function _known(uint256 datasetId) private view returns (address owner) {
        owner = _ownerOf(datasetId);
        if (owner == address(0)) revert UnknownDataset(datasetId);
    }

    function _knownTier(uint256 datasetId, uint8 tierId) private view {
        if (tierId > _records[datasetId].extraTiers) revert UnknownTier(datasetId, tierId);
    }
}
