// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC1271} from "@openzeppelin/contracts/interfaces/IERC1271.sol";
import {IERC165} from "@openzeppelin/contracts/utils/introspection/IERC165.sol";
import {IERC721} from "@openzeppelin/contracts/token/ERC721/IERC721.sol";
import {NodeRegistry} from "@bank/NodeRegistry.sol";
import {INodeRegistry} from "@bank/interfaces/INodeRegistry.sol";
import {bound, vm} from "./Vm.sol";

/// @dev The EIP-712 digests of the node registry, built by hand, so that a slip in the contract's hashing cannot hide.
abstract contract Consents {
    NodeRegistry internal nodes;

    function _typed(uint256 chain, address verifier, bytes32 structHash) private pure returns (bytes32) {
        bytes32 domain = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("datahub nodes"),
                keccak256("1"),
                chain,
                verifier
            )
        );
        return keccak256(abi.encodePacked(hex"1901", domain, structHash));
    }

    function _sign(uint256 key, uint256 chain, address verifier, bytes32 structHash)
        internal
        pure
        returns (bytes memory)
    {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, _typed(chain, verifier, structHash));
        return abi.encodePacked(r, s, v);
    }

    function _consentHash(uint256 hospital, address owner) internal pure returns (bytes32) {
        return keccak256(abi.encode(keccak256("NodeKeyConsent(uint256 hospitalId,address owner)"), hospital, owner));
    }

    function _consent(uint256 key, uint256 hospital, address owner) internal view returns (bytes memory) {
        return _sign(key, block.chainid, address(nodes), _consentHash(hospital, owner));
    }

    function _vouch(uint256 key, bytes memory publicKey, uint256 serial) internal view returns (bytes memory) {
        bytes32 kind = keccak256("SuperNode(bytes publicKey,uint256 serial)");
        return _sign(key, block.chainid, address(nodes), keccak256(abi.encode(kind, keccak256(publicKey), serial)));
    }
}

/// @dev A hospital's node key that is a contract, for instance a multisig.
contract ContractKey is IERC1271 {
    bytes32 public word = keccak256("yes");

    function isValidSignature(bytes32, bytes calldata signature) external view returns (bytes4) {
        return keccak256(signature) == word ? IERC1271.isValidSignature.selector : bytes4(0);
    }
}

contract NodeRegistryTest is Consents {
    address private constant HOSPITAL = address(0xA11CE);
    address private constant OTHER = address(0xB0B);
    uint256 private constant KEY = 0xA1;
    uint256 private constant NEXT = 0xA2;
    uint40 private constant FOREVER = type(uint40).max;
    uint256 private _hospital;

    function setUp() public {
        vm.warp(1_800_000_000);
        nodes = new NodeRegistry();
        vm.prank(HOSPITAL);
        _hospital = nodes.register("https://hospital.example/registration.json");
        _add(_hospital, HOSPITAL, KEY);
    }

    function _add(uint256 hospital, address owner, uint256 key) private {
        bytes memory consent = _consent(key, hospital, owner);
        vm.prank(owner);
        nodes.addNodeKey(hospital, vm.addr(key), uint40(vm.getBlockTimestamp()), FOREVER, consent);
    }

    function _state(uint256 key) private view returns (uint256) {
        (INodeRegistry.KeyState state,) = nodes.keyStatus(vm.addr(key));
        return uint256(state);
    }

    function _point(bytes1 fill) private pure returns (bytes memory key) {
        key = new bytes(97);
        key[0] = 0x04;
        for (uint256 i = 1; i < 97; ++i) {
            key[i] = fill;
        }
    }

    function test_register__withMetadata__isAnErc8004Identity() public {
        INodeRegistry.MetadataEntry[] memory metadata = new INodeRegistry.MetadataEntry[](1);
        metadata[0] = INodeRegistry.MetadataEntry("country", "DE");
        vm.prank(OTHER);
        uint256 id = nodes.register("ipfs://card", metadata);
        vm.assertEq(id, 2, "ids count");
        vm.assertTrue(nodes.ownerOf(id) == OTHER, "owner");
        vm.assertTrue(keccak256(bytes(nodes.tokenURI(id))) == keccak256("ipfs://card"), "uri");
        vm.assertTrue(keccak256(nodes.getMetadata(id, "country")) == keccak256("DE"), "metadata");
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NotHospitalOwner.selector, id, address(this)));
        nodes.setAgentURI(id, "ipfs://mine");
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NotHospitalOwner.selector, id, address(this)));
        nodes.setMetadata(id, "country", "XX");
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.ReservedMetadataKey.selector, "agentWallet"));
        vm.prank(OTHER);
        nodes.setMetadata(id, "agentWallet", "");
        vm.prank(OTHER);
        nodes.setAgentURI(id, "ipfs://card2");
        vm.assertTrue(keccak256(bytes(nodes.tokenURI(id))) == keccak256("ipfs://card2"), "uri changed");
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.UnknownHospital.selector, 9));
        nodes.tokenURI(9);
        vm.assertEq(nodes.register(), 3, "without a uri");
    }

    function test_supportsInterface__erc165Erc721AndOurs__yes() public view {
        vm.assertTrue(nodes.supportsInterface(type(IERC165).interfaceId), "165");
        vm.assertTrue(nodes.supportsInterface(type(IERC721).interfaceId), "721");
        vm.assertTrue(nodes.supportsInterface(type(INodeRegistry).interfaceId), "ours");
        vm.assertTrue(!nodes.supportsInterface(0xffffffff), "not all");
    }

    function test_addNodeKey__byAStranger__refuses() public {
        bytes memory consent = _consent(NEXT, _hospital, OTHER);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NotHospitalOwner.selector, _hospital, OTHER));
        vm.prank(OTHER);
        nodes.addNodeKey(_hospital, vm.addr(NEXT), 0, FOREVER, consent);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.UnknownHospital.selector, 9));
        nodes.addNodeKey(9, vm.addr(NEXT), 0, FOREVER, consent);
    }

    function test_addNodeKey__consentForOtherHospitalOwnerChainOrContract__refuses() public {
        vm.prank(HOSPITAL);
        uint256 second = nodes.register();
        bytes32 good = _consentHash(_hospital, HOSPITAL);
        bytes[5] memory bad = [
            _consent(NEXT, second, HOSPITAL),
            _consent(NEXT, _hospital, OTHER),
            _consent(KEY, _hospital, HOSPITAL),
            _sign(NEXT, block.chainid + 1, address(nodes), good),
            _sign(NEXT, block.chainid, address(this), good)
        ];
        for (uint256 i = 0; i < bad.length; ++i) {
            vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NoConsent.selector, vm.addr(NEXT), _hospital));
            vm.prank(HOSPITAL);
            nodes.addNodeKey(_hospital, vm.addr(NEXT), 0, FOREVER, bad[i]);
        }
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NoConsent.selector, address(0), _hospital));
        vm.prank(HOSPITAL);
        nodes.addNodeKey(_hospital, address(0), 0, FOREVER, new bytes(65));
        _add(_hospital, HOSPITAL, NEXT);
        vm.assertEq(_state(NEXT), uint256(INodeRegistry.KeyState.Active), "with the right one");
    }

    function test_addNodeKey__signatureWithHighS__refuses() public {
        bytes memory consent = _consent(NEXT, _hospital, HOSPITAL);
        (bytes32 r, uint256 s, uint8 v) = (bytes32(0), 0, uint8(consent[64]));
        assembly ("memory-safe") {
            r := mload(add(consent, 32))
            s := mload(add(consent, 64))
        }
        s = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141 - s;
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NoConsent.selector, vm.addr(NEXT), _hospital));
        vm.prank(HOSPITAL);
        nodes.addNodeKey(_hospital, vm.addr(NEXT), 0, FOREVER, abi.encodePacked(r, s, v == 27 ? 28 : 27));
    }

    function test_addNodeKey__usedBefore__refusesEvenAfterRevocation() public {
        vm.prank(OTHER);
        uint256 second = nodes.register();
        bytes memory consent = _consent(KEY, second, OTHER);
        bytes memory refusal = abi.encodeWithSelector(INodeRegistry.KeyUsedBefore.selector, vm.addr(KEY), _hospital);
        vm.expectRevert(refusal);
        vm.prank(OTHER);
        nodes.addNodeKey(second, vm.addr(KEY), 0, FOREVER, consent);
        vm.prank(HOSPITAL);
        nodes.revokeNodeKey(vm.addr(KEY));
        vm.expectRevert(refusal);
        vm.prank(OTHER);
        nodes.addNodeKey(second, vm.addr(KEY), 0, FOREVER, consent);
        consent = _consent(KEY, _hospital, HOSPITAL);
        vm.expectRevert(refusal);
        vm.prank(HOSPITAL);
        nodes.addNodeKey(_hospital, vm.addr(KEY), 0, FOREVER, consent);
    }

    function test_addNodeKey__timeThatIsNone__refuses() public {
        bytes memory consent = _consent(NEXT, _hospital, HOSPITAL);
        uint40 start = uint40(block.timestamp);
        uint40[2][2] memory bad = [[start + 5, start + 5], [start - 9, start]];
        for (uint256 i = 0; i < bad.length; ++i) {
            (uint40 from, uint40 until) = (bad[i][0], bad[i][1]);
            vm.expectRevert(abi.encodeWithSelector(INodeRegistry.BadValidity.selector, from, until, start));
            vm.prank(HOSPITAL);
            nodes.addNodeKey(_hospital, vm.addr(NEXT), from, until, consent);
        }
    }

    function test_keyStatus__overTime__waitsIsActiveExpires() public {
        uint40 start = uint40(block.timestamp);
        bytes memory consent = _consent(NEXT, _hospital, HOSPITAL);
        vm.prank(HOSPITAL);
        nodes.addNodeKey(_hospital, vm.addr(NEXT), start + 10, start + 20, consent);
        vm.assertEq(_state(NEXT), uint256(INodeRegistry.KeyState.Waiting), "waits");
        vm.warp(start + 10);
        vm.assertEq(_state(NEXT), uint256(INodeRegistry.KeyState.Active), "from");
        vm.warp(start + 19);
        vm.assertEq(_state(NEXT), uint256(INodeRegistry.KeyState.Active), "last second");
        vm.warp(start + 20);
        vm.assertEq(_state(NEXT), uint256(INodeRegistry.KeyState.Expired), "until");
        vm.assertTrue(!nodes.isActive(_hospital, vm.addr(NEXT), start + 9), "before");
        vm.assertTrue(nodes.isActive(_hospital, vm.addr(NEXT), start + 10), "then");
        vm.assertTrue(!nodes.isActive(_hospital + 1, vm.addr(NEXT), start + 10), "for this hospital only");
        vm.assertTrue(!nodes.isActive(0, vm.addr(0xDEAD), start), "nobody's key is nobody's");
    }

    function test_addNodeKey__contractKey__answersForItself() public {
        ContractKey key = new ContractKey();
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NoConsent.selector, address(key), _hospital));
        vm.prank(HOSPITAL);
        nodes.addNodeKey(_hospital, address(key), 0, FOREVER, "no");
        vm.prank(HOSPITAL);
        nodes.addNodeKey(_hospital, address(key), 0, FOREVER, "yes");
        (INodeRegistry.KeyState state, address owner) = nodes.keyStatus(address(key));
        vm.assertTrue(state == INodeRegistry.KeyState.Active && owner == HOSPITAL, "active");
    }

    function testFuzz_rotateNodeKey__overlap__bothServeAndThenTheNewOne(uint32 overlap) public {
        bytes memory consent = _consent(NEXT, _hospital, HOSPITAL);
        uint256 start = block.timestamp;
        vm.prank(HOSPITAL);
        nodes.rotateNodeKey(vm.addr(KEY), vm.addr(NEXT), overlap, consent);
        vm.assertTrue(nodes.isActive(_hospital, vm.addr(NEXT), start), "new one at once");
        if (overlap > 0) vm.assertTrue(nodes.isActive(_hospital, vm.addr(KEY), start + overlap - 1), "old one meanwhile");
        vm.assertTrue(!nodes.isActive(_hospital, vm.addr(KEY), start + overlap), "and not after");
        vm.warp(start + overlap);
        vm.assertEq(_state(KEY), uint256(INodeRegistry.KeyState.Expired), "expired");
        vm.assertEq(_state(NEXT), uint256(INodeRegistry.KeyState.Active), "active");
    }

    function test_rotateNodeKey__keyThatEndsSooner__isNotLengthened() public {
        bytes memory consent = _consent(NEXT, _hospital, HOSPITAL);
        uint40 start = uint40(block.timestamp);
        vm.prank(HOSPITAL);
        nodes.addNodeKey(_hospital, vm.addr(NEXT), start, start + 100, consent);
        consent = _consent(0xA3, _hospital, HOSPITAL);
        vm.prank(HOSPITAL);
        nodes.rotateNodeKey(vm.addr(NEXT), vm.addr(0xA3), 1000, consent);
        vm.assertEq(nodes.nodeKey(vm.addr(NEXT)).validUntil, start + 100, "as before");
    }

    function test_rotateNodeKey__byAStrangerOrOfADeadKey__refuses() public {
        bytes memory consent = _consent(NEXT, _hospital, OTHER);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NotHospitalOwner.selector, _hospital, OTHER));
        vm.prank(OTHER);
        nodes.rotateNodeKey(vm.addr(KEY), vm.addr(NEXT), 0, consent);
        vm.prank(HOSPITAL);
        nodes.revokeNodeKey(vm.addr(KEY));
        bytes4 refusal = INodeRegistry.KeyNotActive.selector;
        vm.expectRevert(abi.encodeWithSelector(refusal, vm.addr(KEY), INodeRegistry.KeyState.Revoked));
        vm.prank(HOSPITAL);
        nodes.rotateNodeKey(vm.addr(KEY), vm.addr(NEXT), 0, consent);
    }

    function test_revokeNodeKey__byOwnerOrItself__atOnceAndOnce() public {
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NotHospitalOwner.selector, _hospital, OTHER));
        vm.prank(OTHER);
        nodes.revokeNodeKey(vm.addr(KEY));
        vm.prank(vm.addr(KEY));
        nodes.revokeNodeKey(vm.addr(KEY));
        vm.assertEq(_state(KEY), uint256(INodeRegistry.KeyState.Revoked), "revoked");
        bytes4 refusal = INodeRegistry.KeyNotActive.selector;
        vm.expectRevert(abi.encodeWithSelector(refusal, vm.addr(KEY), INodeRegistry.KeyState.Revoked));
        vm.prank(HOSPITAL);
        nodes.revokeNodeKey(vm.addr(KEY));
        vm.expectRevert(abi.encodeWithSelector(refusal, vm.addr(NEXT), INodeRegistry.KeyState.Unknown));
        nodes.revokeNodeKey(vm.addr(NEXT));
        _add(_hospital, HOSPITAL, NEXT);
        vm.prank(HOSPITAL);
        nodes.revokeNodeKey(vm.addr(NEXT));
        vm.assertEq(_state(NEXT), uint256(INodeRegistry.KeyState.Revoked), "by the owner");
    }

    function test_transfer__newOwner__oldKeysMetadataAndOfferAreGoneForGood() public {
        vm.prank(HOSPITAL);
        nodes.setMetadata(_hospital, "country", "DE");
        vm.prank(HOSPITAL);
        nodes.setOffer(_hospital, OTHER, 7, "1 GPU");
        bytes memory unused = _consent(NEXT, _hospital, HOSPITAL);
        vm.prank(HOSPITAL);
        nodes.transferFrom(HOSPITAL, OTHER, _hospital);
        vm.assertEq(_state(KEY), uint256(INodeRegistry.KeyState.Revoked), "key");
        vm.assertTrue(!nodes.isActive(_hospital, vm.addr(KEY), block.timestamp), "not active");
        vm.assertEq(nodes.getMetadata(_hospital, "country").length, 0, "metadata");
        vm.assertEq(nodes.offer(_hospital).minuteUnits, 0, "offer");
        vm.assertEq(nodes.offer(_hospital).version, 2, "a change like any other");
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NoConsent.selector, vm.addr(NEXT), _hospital));
        vm.prank(OTHER);
        nodes.addNodeKey(_hospital, vm.addr(NEXT), 0, FOREVER, unused);
        vm.prank(OTHER);
        nodes.transferFrom(OTHER, HOSPITAL, _hospital);
        vm.assertEq(_state(KEY), uint256(INodeRegistry.KeyState.Revoked), "coming back revives nothing");
    }

    function test_bindSuperNode__byAnybodyWithTheKeysWord__andNeverTwiceByTheSame() public {
        bytes memory first = _vouch(KEY, _point(0x11), 0);
        nodes.bindSuperNode(vm.addr(KEY), _point(0x11), first);
        vm.assertTrue(nodes.superNodeOf(vm.addr(KEY)) == keccak256(_point(0x11)), "bound");
        vm.assertEq(nodes.superNodeSerial(vm.addr(KEY)), 1, "next serial");
        nodes.bindSuperNode(vm.addr(KEY), _point(0x22), _vouch(KEY, _point(0x22), 1));
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NoConsent.selector, vm.addr(KEY), _hospital));
        nodes.bindSuperNode(vm.addr(KEY), _point(0x11), first);
        vm.assertTrue(nodes.superNodeOf(vm.addr(KEY)) == keccak256(_point(0x22)), "the newer one");
        vm.prank(HOSPITAL);
        nodes.revokeNodeKey(vm.addr(KEY));
        vm.assertTrue(nodes.superNodeOf(vm.addr(KEY)) == 0, "a revoked key vouches for nothing");
        bytes memory late = _vouch(KEY, _point(0x33), 2);
        bytes4 refusal = INodeRegistry.KeyNotActive.selector;
        vm.expectRevert(abi.encodeWithSelector(refusal, vm.addr(KEY), INodeRegistry.KeyState.Revoked));
        nodes.bindSuperNode(vm.addr(KEY), _point(0x33), late);
    }

    function test_bindSuperNode__noPoint__refuses() public {
        bytes memory compressed = new bytes(97);
        bytes memory signature = _vouch(KEY, compressed, 0);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.BadPublicKey.selector, 97));
        nodes.bindSuperNode(vm.addr(KEY), compressed, signature);
        signature = _vouch(KEY, hex"04", 0);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.BadPublicKey.selector, 1));
        nodes.bindSuperNode(vm.addr(KEY), hex"04", signature);
    }

    function test_setOffer__owner__isKeptWithItsVersion() public {
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NotHospitalOwner.selector, _hospital, address(this)));
        nodes.setOffer(_hospital, OTHER, 7, "1 GPU");
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.HardwareTooLong.selector, 257));
        vm.prank(HOSPITAL);
        nodes.setOffer(_hospital, OTHER, 7, string(new bytes(257)));
        vm.prank(HOSPITAL);
        nodes.setOffer(_hospital, OTHER, 7, "1 GPU of 80 GiB");
        INodeRegistry.Offer memory offer = nodes.offer(_hospital);
        vm.assertTrue(offer.paymentToken == OTHER && offer.minuteUnits == 7 && offer.version == 1, "offer");
        vm.assertTrue(keccak256(bytes(offer.hardware)) == keccak256("1 GPU of 80 GiB"), "hardware");
    }
}

/// @dev Two hospitals that change hands, and six keys, used at random; remembers what must stay true.
contract Keyring is Consents {
    address[2] private _people = [address(0xA11CE), address(0xB0B)];
    uint256[6] public keys = [uint256(0xA1), 0xA2, 0xA3, 0xA4, 0xA5, 0xA6];
    mapping(uint256 key => uint256) public servedFirst;
    mapping(uint256 key => bool) public dead;

    constructor() {
        vm.warp(1_800_000_000);
        nodes = new NodeRegistry();
        for (uint256 i = 0; i < 2; ++i) {
            vm.prank(_people[i]);
            nodes.register();
        }
    }

    function registry() external view returns (NodeRegistry) {
        return nodes;
    }

    function add(uint256 which, uint256 hospital, uint32 from, uint32 time) external {
        uint256 key = keys[which % 6];
        hospital = 1 + hospital % 2;
        address owner = nodes.ownerOf(hospital);
        uint256 start = vm.getBlockTimestamp() + from % 1000;
        bytes memory consent = _consent(key, hospital, owner);
        vm.prank(owner);
        try nodes.addNodeKey(hospital, vm.addr(key), uint40(start), uint40(start + 1 + time % 5000), consent) {
            vm.assertEq(servedFirst[key], 0, "a key that served before");
            servedFirst[key] = hospital;
        } catch {}
    }

    function rotate(uint256 which, uint256 next, uint32 overlap) external {
        uint256 hospital = servedFirst[keys[which % 6]];
        if (hospital == 0) return;
        address owner = nodes.ownerOf(hospital);
        bytes memory consent = _consent(keys[next % 6], hospital, owner);
        vm.prank(owner);
        try nodes.rotateNodeKey(vm.addr(keys[which % 6]), vm.addr(keys[next % 6]), overlap % 3000, consent) {
            vm.assertEq(servedFirst[keys[next % 6]], 0, "a key that served before");
            servedFirst[keys[next % 6]] = hospital;
        } catch {}
    }

    function revoke(uint256 which, uint256 who) external {
        uint256 key = keys[which % 6];
        vm.prank(who % 3 == 2 ? vm.addr(key) : _people[who % 3]);
        try nodes.revokeNodeKey(vm.addr(key)) {
            dead[key] = true;
        } catch {}
    }

    function handOver(uint256 hospital) external {
        hospital = 1 + hospital % 2;
        address owner = nodes.ownerOf(hospital);
        vm.prank(owner);
        nodes.transferFrom(owner, owner == _people[0] ? _people[1] : _people[0], hospital);
        for (uint256 i = 0; i < 6; ++i) {
            if (servedFirst[keys[i]] == hospital) dead[keys[i]] = true;
        }
    }

    function wait(uint32 time) external {
        vm.warp(vm.getBlockTimestamp() + bound(time, 1, 2000));
    }
}

contract NodeRegistryInvariantTest {
    Keyring private _ring;

    function setUp() public {
        _ring = new Keyring();
    }

    function targetContracts() public view returns (address[] memory found) {
        found = new address[](1);
        found[0] = address(_ring);
    }

    function invariant_aDeadKeyIsNeverActiveAgainAndNoKeyServesTwo() public view {
        NodeRegistry nodes = _ring.registry();
        for (uint256 i = 0; i < 6; ++i) {
            uint256 key = _ring.keys(i);
            (INodeRegistry.KeyState state, address owner) = nodes.keyStatus(vm.addr(key));
            uint256 hospital = _ring.servedFirst(key);
            vm.assertEq(nodes.nodeKey(vm.addr(key)).hospitalId, hospital, "the hospital it first served");
            if (_ring.dead(key)) vm.assertTrue(state == INodeRegistry.KeyState.Revoked, "dead");
            bool active = state == INodeRegistry.KeyState.Active;
            for (uint256 other = 1; other <= 2; ++other) {
                bool here = nodes.isActive(other, vm.addr(key), vm.getBlockTimestamp());
                vm.assertTrue(here == (active && other == hospital), "active for its own hospital alone");
            }
            if (active) vm.assertTrue(owner == nodes.ownerOf(hospital), "owner");
        }
    }
}
