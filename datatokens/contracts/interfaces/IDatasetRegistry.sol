// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title Datasets as ERC-721 tokens, each with its own ERC-20 datatoken (1.0 = one job)
/// @notice Knows who owns a dataset, what one job on it costs and which key its node signs with.
///         Knows nothing of jobs or money held: those live in the market.
interface IDatasetRegistry {
    struct Dataset {
        address datatoken; // EIP-1167 clone, 18 decimals, 1e18 = one job
        uint96 priceUnits; // price of one job in base units of the payment token; 0 = free
        address node; // key that signs acceptances, refusals and attestations for this dataset
        uint16 contributorBps; // contributors' part of every revenue, in basis points of 10_000
        bytes32 manifestHash; // sha-256 of the canonical JSON manifest
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
    event ManifestChanged(uint256 indexed datasetId, bytes32 manifestHash, string uri);
    /// @notice New jobs must name `node`; jobs already funded keep the key in their terms.
    event NodeKeyChanged(uint256 indexed datasetId, address indexed node);

    /// @notice The caller does not own the dataset.
    error NotDatasetOwner(uint256 datasetId, address caller);
    /// @notice No dataset has this id.
    error UnknownDataset(uint256 datasetId);
    /// @notice Basis points go from 0 to 10_000.
    error BadContributorBps(uint16 contributorBps);
    /// @notice A node key must not be the zero address.
    error ZeroNodeKey();
    /// @notice Only the market or the dataset's owner may mint datatokens.
    error NotMinter(uint256 datasetId, address caller);
    /// @notice The market is set once, by the deployer.
    error MarketAlreadySet();
    error NotDeployer(address caller);

    /// @notice List a dataset: mints the ERC-721 to the caller and clones its datatoken. Ids count from 1.
    function listDataset(
        address node,
        uint96 priceUnits,
        uint16 contributorBps,
        bytes32 manifestHash,
        string calldata uri,
        string calldata symbol
    ) external returns (uint256 datasetId, address datatoken);

    function setPrice(uint256 datasetId, uint96 priceUnits) external;
    function setManifest(uint256 datasetId, bytes32 manifestHash, string calldata uri) external;
    /// @notice Rotate the node key.
    function setNode(uint256 datasetId, address node) external;
    /// @notice Mint `amount` (18 decimals) datatokens to `to`: vouchers the owner gives away, or the market sells.
    function mintDatatokens(uint256 datasetId, address to, uint256 amount) external;

    /// @notice Everything a job needs to know of a dataset; reverts UnknownDataset.
    function dataset(uint256 datasetId) external view returns (Dataset memory);
    function datasetCount() external view returns (uint256);
    function market() external view returns (address);
    /// @notice Once, by the deployer: the market that may mint on a sale.
    function setMarket(address market) external;
}
