// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ERC721} from "@openzeppelin/contracts/token/ERC721/ERC721.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";
import {INodeRegistry} from "./interfaces/INodeRegistry.sol";

// deadlines and windows are minutes to days; a proposer moves the time of a block by seconds
// slither-disable-start timestamp

/// @title Hospitals and their node keys; no owner of the whole, no upgrade, nothing to pause
contract NodeRegistry is ERC721, EIP712, INodeRegistry {
    uint40 private constant FOREVER = type(uint40).max;
    uint256 private constant MAX_HARDWARE_BYTES = 256;
    bytes32 private constant CONSENT = keccak256("NodeKeyConsent(uint256 hospitalId,address owner)");
    bytes32 private constant SUPERNODE = keccak256("SuperNode(bytes publicKey,uint256 serial)");
    bytes32 private constant AGENT_WALLET = keccak256("agentWallet");

    struct Binding {
        bytes32 publicKeyHash;
        uint256 serial;
    }

    /// @inheritdoc INodeRegistry
    uint256 public hospitalCount;
    mapping(uint256 hospitalId => uint32) private _ownership;
    mapping(uint256 hospitalId => string) private _uris;
    mapping(uint256 hospitalId => mapping(uint32 ownership => mapping(bytes32 key => bytes))) private _metadata;
    mapping(uint256 hospitalId => Offer) private _offers;
    mapping(address key => NodeKey) private _keys;
    mapping(address key => Binding) private _bindings;

    constructor() ERC721("datahub hospital", "HOSPITAL") EIP712("datahub nodes", "1") {}

    modifier onlyHospitalOwner(uint256 hospitalId) {
        if (_known(hospitalId) != msg.sender) revert NotHospitalOwner(hospitalId, msg.sender);
        _;
    }

    /// @inheritdoc INodeRegistry
    function register(string calldata agentURI, MetadataEntry[] calldata metadata) external returns (uint256 agentId) {
        agentId = _register(agentURI);
        for (uint256 i = 0; i < metadata.length; ++i) {
            _setMetadata(agentId, metadata[i].metadataKey, metadata[i].metadataValue);
        }
    }

    /// @inheritdoc INodeRegistry
    function register(string calldata agentURI) external returns (uint256 agentId) {
        return _register(agentURI);
    }

    /// @inheritdoc INodeRegistry
    function register() external returns (uint256 agentId) {
        return _register("");
    }

    /// @inheritdoc INodeRegistry
    function setAgentURI(uint256 agentId, string calldata newURI) external onlyHospitalOwner(agentId) {
        _uris[agentId] = newURI;
        emit URIUpdated(agentId, newURI, msg.sender);
    }

    /// @inheritdoc INodeRegistry
    function setMetadata(uint256 agentId, string calldata metadataKey, bytes calldata metadataValue)
        external
        onlyHospitalOwner(agentId)
    {
        _setMetadata(agentId, metadataKey, metadataValue);
    }

    /// @inheritdoc INodeRegistry
    function addNodeKey(
        uint256 hospitalId,
        address key,
        uint40 validFrom,
        uint40 validUntil,
        bytes calldata consent
    ) external onlyHospitalOwner(hospitalId) {
        if (validUntil <= validFrom || validUntil <= block.timestamp) {
            revert BadValidity(validFrom, validUntil, block.timestamp);
        }
        _addKey(hospitalId, key, validFrom, validUntil, consent);
    }

    /// @inheritdoc INodeRegistry
    function rotateNodeKey(address oldKey, address newKey, uint32 overlapSeconds, bytes calldata consent) external {
        NodeKey storage old = _keys[oldKey];
        uint256 hospitalId = old.hospitalId;
        (KeyState state, address owner) = keyStatus(oldKey);
        if (state != KeyState.Active) revert KeyNotActive(oldKey, state);
        if (owner != msg.sender) revert NotHospitalOwner(hospitalId, msg.sender);
        uint40 until = uint40(block.timestamp + overlapSeconds);
        if (until < old.validUntil) old.validUntil = until; // an overlap never lengthens a life that ends sooner
        emit NodeKeyEnds(hospitalId, oldKey, old.validUntil);
        _addKey(hospitalId, newKey, uint40(block.timestamp), FOREVER, consent);
    }

    /// @inheritdoc INodeRegistry
    function revokeNodeKey(address key) external {
        (KeyState state, address owner) = keyStatus(key);
        if (state == KeyState.Unknown || state == KeyState.Revoked) revert KeyNotActive(key, state);
        uint256 hospitalId = _keys[key].hospitalId;
        if (msg.sender != owner && msg.sender != key) revert NotHospitalOwner(hospitalId, msg.sender);
        _keys[key].revoked = true;
        emit NodeKeyRevoked(hospitalId, key, msg.sender);
    }

    /// @inheritdoc INodeRegistry
    function bindSuperNode(address key, bytes calldata publicKey, bytes calldata signature) external {
        (KeyState state,) = keyStatus(key);
        if (state != KeyState.Active) revert KeyNotActive(key, state);
        uint256 hospitalId = _keys[key].hospitalId;
        // 04, x, y on a curve of 256, 384 or 521 bits, the ones the federation's transport knows
        if ((publicKey.length != 65 && publicKey.length != 97 && publicKey.length != 133) || publicKey[0] != 0x04) {
            revert BadPublicKey(publicKey.length);
        }
        Binding storage bound = _bindings[key];
        // the serial makes a signature good once: an old machine cannot be bound again by whoever kept it
        bytes32 digest = _hashTypedDataV4(keccak256(abi.encode(SUPERNODE, keccak256(publicKey), bound.serial)));
        if (!SignatureChecker.isValidSignatureNowCalldata(key, digest, signature)) revert NoConsent(key, hospitalId);
        bound.publicKeyHash = keccak256(publicKey);
        bound.serial += 1;
        emit SuperNodeBound(hospitalId, key, publicKey);
    }

    /// @inheritdoc INodeRegistry
    function setOffer(uint256 hospitalId, address paymentToken, uint96 minuteUnits, string calldata hardware)
        external
        onlyHospitalOwner(hospitalId)
    {
        if (bytes(hardware).length > MAX_HARDWARE_BYTES) revert HardwareTooLong(bytes(hardware).length);
        _setOffer(hospitalId, paymentToken, minuteUnits, hardware);
    }

    /// @inheritdoc INodeRegistry
    function keyStatus(address key) public view returns (KeyState state, address owner) {
        NodeKey memory found = _keys[key];
        // ids, not amounts; a block's time moves by seconds, keys live for days
        // slither-disable-next-line incorrect-equality,timestamp
        if (found.hospitalId == 0) return (KeyState.Unknown, address(0));
        if (found.revoked || found.ownership != _ownership[found.hospitalId]) return (KeyState.Revoked, address(0));
        owner = _ownerOf(found.hospitalId);
        if (block.timestamp < found.validFrom) return (KeyState.Waiting, owner);
        return (block.timestamp < found.validUntil ? KeyState.Active : KeyState.Expired, owner);
    }

    /// @inheritdoc INodeRegistry
    function nodeKey(address key) external view returns (NodeKey memory) {
        return _keys[key];
    }

    /// @inheritdoc INodeRegistry
    function isActive(uint256 hospitalId, address key, uint256 when) external view returns (bool) {
        NodeKey memory found = _keys[key];
        // ids, not amounts
        // slither-disable-next-line incorrect-equality
        return hospitalId != 0 && found.hospitalId == hospitalId && !found.revoked
            && found.ownership == _ownership[hospitalId] && when >= found.validFrom && when < found.validUntil;
    }

    /// @inheritdoc INodeRegistry
    function superNodeOf(address key) external view returns (bytes32 publicKeyHash) {
        (KeyState state,) = keyStatus(key);
        return state == KeyState.Active ? _bindings[key].publicKeyHash : bytes32(0);
    }

    /// @inheritdoc INodeRegistry
    function superNodeSerial(address key) external view returns (uint256) {
        return _bindings[key].serial;
    }

    /// @inheritdoc INodeRegistry
    function offer(uint256 hospitalId) external view returns (Offer memory) {
        return _offers[hospitalId];
    }

    /// @inheritdoc INodeRegistry
    function getMetadata(uint256 agentId, string calldata metadataKey) external view returns (bytes memory) {
        return _metadata[agentId][_ownership[agentId]][keccak256(bytes(metadataKey))];
    }

    /// @notice Where the hospital's registration file is (ERC-8004), as its owner last said.
    function tokenURI(uint256 hospitalId) public view override returns (string memory) {
        _known(hospitalId);
        return _uris[hospitalId];
    }

    /// @notice ERC-165: ERC-721, its metadata and this registry.
    function supportsInterface(bytes4 interfaceId) public view override returns (bool) {
        return interfaceId == type(INodeRegistry).interfaceId || super.supportsInterface(interfaceId);
    }

    /// @dev Every change of hands starts a new ownership: keys and metadata of the one before are gone without a loop,
    ///      and nothing is offered any more.
    function _update(address to, uint256 hospitalId, address auth) internal override returns (address from) {
        from = super._update(to, hospitalId, auth);
        if (from != address(0)) {
            ++_ownership[hospitalId];
            if (_offers[hospitalId].version != 0) _setOffer(hospitalId, address(0), 0, "");
        }
    }

    function _register(string memory agentURI) private returns (uint256 agentId) {
        agentId = ++hospitalCount;
        _uris[agentId] = agentURI;
        // _mint, not _safeMint: no callback into a stranger's contract
        _mint(msg.sender, agentId);
        emit Registered(agentId, agentURI, msg.sender);
    }

    function _setMetadata(uint256 agentId, string calldata metadataKey, bytes calldata metadataValue) private {
        bytes32 name = keccak256(bytes(metadataKey));
        if (name == AGENT_WALLET) revert ReservedMetadataKey(metadataKey);
        _metadata[agentId][_ownership[agentId]][name] = metadataValue;
        emit MetadataSet(agentId, metadataKey, metadataKey, metadataValue);
    }

    function _setOffer(uint256 hospitalId, address paymentToken, uint96 minuteUnits, string memory hardware) private {
        uint32 version = _offers[hospitalId].version + 1;
        _offers[hospitalId] = Offer(paymentToken, minuteUnits, version, hardware);
        emit OfferChanged(hospitalId, paymentToken, minuteUnits, hardware, version);
    }

    function _addKey(uint256 hospitalId, address key, uint40 from, uint40 until, bytes calldata consent) private {
        uint256 before = _keys[key].hospitalId;
        if (before != 0) revert KeyUsedBefore(key, before);
        bytes32 digest = _hashTypedDataV4(keccak256(abi.encode(CONSENT, hospitalId, msg.sender)));
        if (key == address(0) || !SignatureChecker.isValidSignatureNowCalldata(key, digest, consent)) {
            revert NoConsent(key, hospitalId);
        }
        _keys[key] = NodeKey(uint64(hospitalId), _ownership[hospitalId], from, until, false);
        emit NodeKeyAdded(hospitalId, key, from, until);
    }

    function _known(uint256 hospitalId) private view returns (address owner) {
        owner = _ownerOf(hospitalId);
        if (owner == address(0)) revert UnknownHospital(hospitalId);
    }
}

// slither-disable-end timestamp
