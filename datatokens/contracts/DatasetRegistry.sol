// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ERC721} from "@openzeppelin/contracts/token/ERC721/ERC721.sol";
import {Clones} from "@openzeppelin/contracts/proxy/Clones.sol";
import {Datatoken} from "./Datatoken.sol";
import {IDatasetRegistry} from "./interfaces/IDatasetRegistry.sol";

/// @title Datasets as one ERC-721 collection; no owner, no upgrade, nothing to pause
contract DatasetRegistry is ERC721, IDatasetRegistry {
    uint16 private constant BPS = 10_000;
    address public immutable datatokenTemplate;
    address private immutable _deployer;
    /// @inheritdoc IDatasetRegistry
    address public market;
    /// @inheritdoc IDatasetRegistry
    uint256 public datasetCount;
    mapping(uint256 datasetId => Dataset) private _datasets;

    constructor() ERC721("datahub dataset", "DATASET") {
        _deployer = msg.sender;
        datatokenTemplate = address(new Datatoken());
    }

    modifier onlyDatasetOwner(uint256 datasetId) {
        if (_known(datasetId) != msg.sender) revert NotDatasetOwner(datasetId, msg.sender);
        _;
    }

    /// @inheritdoc IDatasetRegistry
    function setMarket(address market_) external {
        if (msg.sender != _deployer) revert NotDeployer(msg.sender);
        if (market != address(0)) revert MarketAlreadySet();
        market = market_;
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
        datatoken = Clones.cloneWithImmutableArgs(datatokenTemplate, abi.encode(datasetId, symbol_));
        _datasets[datasetId] = Dataset(datatoken, priceUnits, node, contributorBps, manifestHash);
        // _mint, not _safeMint: no callback into a stranger's contract; a hospital's multisig can hold ERC-721 anyway
        _mint(msg.sender, datasetId);
        emit DatasetListed(datasetId, msg.sender, datatoken, node, priceUnits, contributorBps, manifestHash, uri);
    }

    /// @inheritdoc IDatasetRegistry
    function setPrice(uint256 datasetId, uint96 priceUnits) external onlyDatasetOwner(datasetId) {
        _datasets[datasetId].priceUnits = priceUnits;
        emit PriceChanged(datasetId, priceUnits);
    }

    /// @inheritdoc IDatasetRegistry
    function setManifest(uint256 datasetId, bytes32 manifestHash, string calldata uri)
        external
        onlyDatasetOwner(datasetId)
    {
        _datasets[datasetId].manifestHash = manifestHash;
        emit ManifestChanged(datasetId, manifestHash, uri);
    }

    /// @inheritdoc IDatasetRegistry
    function setNode(uint256 datasetId, address node) external onlyDatasetOwner(datasetId) {
        if (node == address(0)) revert ZeroNodeKey();
        _datasets[datasetId].node = node;
        emit NodeKeyChanged(datasetId, node);
    }

    /// @inheritdoc IDatasetRegistry
    function mintDatatokens(uint256 datasetId, address to, uint256 amount) external {
        if (_known(datasetId) != msg.sender && msg.sender != market) revert NotMinter(datasetId, msg.sender);
        Datatoken(_datasets[datasetId].datatoken).mint(to, amount);
    }

    /// @inheritdoc IDatasetRegistry
    function dataset(uint256 datasetId) external view returns (Dataset memory) {
        _known(datasetId);
        return _datasets[datasetId];
    }

    function _known(uint256 datasetId) private view returns (address owner) {
        owner = _ownerOf(datasetId);
        if (owner == address(0)) revert UnknownDataset(datasetId);
    }
}
