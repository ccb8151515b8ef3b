// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title Hospitals as ERC-721 tokens, each with the keys that its nodes sign with
/// @notice The token's owner is the hospital's cold account. Its node keys are hot: they come with their own consent,
///         overlap when one follows another, and can be revoked at once. A SuperNode's public key, by which the
///         federation knows the machine, is vouched for by a node key, so that owner -> node key -> machine can be
///         checked by anyone. Knows nothing of datasets, jobs or money.
/// @dev The identity half of ERC-8004 (draft) as far as it fits: `register`, `setAgentURI`, `tokenURI`, metadata, and
///      its events; an agent is a hospital. Left out: its agent wallet, since revenue is withdrawn to where the owner
///      says each time, and its reputation registry, which takes feedback from anybody: the market counts what it has
///      seen itself (IRevenuePools.standing), and nobody else writes those numbers.
interface INodeRegistry {
    enum KeyState {
        Unknown, // never registered
        Waiting, // its time has not come
        Active,
        Expired, // its time is over: another key has followed it
        Revoked // by its owner, by itself, or because the hospital changed hands; for good
    }

    struct NodeKey {
        uint64 hospitalId;
        uint32 ownership; // of the hospital, when the key was added
        uint40 validFrom; // unix seconds
        uint40 validUntil; // unix seconds, exclusive
        bool revoked;
    }

    /// @dev What a hospital offers in general. What one job pays is in its terms, which the node checks.
    struct Offer {
        address paymentToken;
        uint96 minuteUnits; // for every started minute of training, in base units of that token
        uint32 version; // counting from 1; 0: no offer was made
        string hardware; // for people, up to 256 bytes
    }

    struct MetadataEntry {
        string metadataKey;
        bytes metadataValue;
    }

    event Registered(uint256 indexed agentId, string agentURI, address indexed owner);
    event URIUpdated(uint256 indexed agentId, string newURI, address indexed updatedBy);
    event MetadataSet(
        uint256 indexed agentId, string indexed indexedMetadataKey, string metadataKey, bytes metadataValue
    );
    event NodeKeyAdded(uint256 indexed hospitalId, address indexed key, uint256 validFrom, uint256 validUntil);
    /// @notice The key serves until then and no longer.
    event NodeKeyEnds(uint256 indexed hospitalId, address indexed key, uint256 validUntil);
    event NodeKeyRevoked(uint256 indexed hospitalId, address indexed key, address by);
    /// @param publicKey the uncompressed point (04, x, y) of an elliptic curve key
    event SuperNodeBound(uint256 indexed hospitalId, address indexed key, bytes publicKey);
    event OfferChanged(
        uint256 indexed hospitalId, address paymentToken, uint96 minuteUnits, string hardware, uint32 version
    );

    error NotHospitalOwner(uint256 hospitalId, address caller);
    error UnknownHospital(uint256 hospitalId);
    /// @notice A key serves one hospital, once in its life.
    error KeyUsedBefore(address key, uint256 hospitalId);
    /// @notice The key has not signed that it will serve this hospital of this owner.
    error NoConsent(address key, uint256 hospitalId);
    error BadValidity(uint256 validFrom, uint256 validUntil, uint256 nowSeconds);
    /// @notice Only a key that is active, and of this hospital, can be rotated, or vouch.
    error KeyNotActive(address key, KeyState state);
    error BadPublicKey(uint256 length);
    error HardwareTooLong(uint256 length);
    /// @notice ERC-8004 keeps this metadata key for the agent wallet, which is not supported.
    error ReservedMetadataKey(string metadataKey);

    /// @notice A hospital of the caller's; ids count from 1.
    function register(string calldata agentURI, MetadataEntry[] calldata metadata) external returns (uint256 agentId);
    function register(string calldata agentURI) external returns (uint256 agentId);
    function register() external returns (uint256 agentId);
    function setAgentURI(uint256 agentId, string calldata newURI) external;
    function setMetadata(uint256 agentId, string calldata metadataKey, bytes calldata metadataValue) external;
    function getMetadata(uint256 agentId, string calldata metadataKey) external view returns (bytes memory);

    /// @notice Add a node key. By the owner, with the key's EIP-712 signature (or, of a contract, its ERC-1271 word) over
    ///         NodeKeyConsent(uint256 hospitalId,address owner).
    function addNodeKey(
        uint256 hospitalId,
        address key,
        uint40 validFrom,
        uint40 validUntil,
        bytes calldata consent
    ) external;
    /// @notice Let `newKey` serve from now on and without end, and `oldKey` for `overlapSeconds` more, so that jobs
    ///         quoted with it can still be accepted. By the owner, with the new key's consent.
    function rotateNodeKey(address oldKey, address newKey, uint32 overlapSeconds, bytes calldata consent) external;
    /// @notice End a key at once and for good. By the hospital's owner or by the key itself.
    function revokeNodeKey(address key) external;
    /// @notice Say which SuperNode dials in for a node key; it replaces the one before. By anybody, with the key's
    ///         EIP-712 signature over SuperNode(bytes publicKey,uint256 serial), serial = superNodeSerial(key).
    function bindSuperNode(address key, bytes calldata publicKey, bytes calldata signature) external;
    /// @notice By the owner.
    function setOffer(uint256 hospitalId, address paymentToken, uint96 minuteUnits, string calldata hardware) external;

    /// @notice What a key may do now, and for whom: the owner of its hospital unless it is unknown or revoked.
    function keyStatus(address key) external view returns (KeyState state, address owner);
    function nodeKey(address key) external view returns (NodeKey memory);
    function isActive(uint256 hospitalId, address key, uint256 when) external view returns (bool);
    /// @notice keccak256 of the public key that an active node key vouches for; 0: none.
    function superNodeOf(address key) external view returns (bytes32 publicKeyHash);
    function superNodeSerial(address key) external view returns (uint256);
    function offer(uint256 hospitalId) external view returns (Offer memory);
    function hospitalCount() external view returns (uint256);
}
