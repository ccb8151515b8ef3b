// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {DatasetRegistry} from "@bank/DatasetRegistry.sol";
import {Datatoken} from "@bank/Datatoken.sol";
import {NodeRegistry} from "@bank/NodeRegistry.sol";
import {Market} from "@bank/Market.sol";
import {IJobEscrow} from "@bank/interfaces/IJobEscrow.sol";
import {IRevenuePools} from "@bank/interfaces/IRevenuePools.sol";
import {BlocklistToken} from "./Tokens.sol";
import {vm} from "./Vm.sol";

/// @dev A registry, a market and datasets 1..N whose node keys ascend with the id. The EIP-712 digests are built by
///      hand here, so a slip in the contract's own hashing cannot hide.
abstract contract Bank {
    address internal constant HOSPITAL = address(0xA11CE);
    address internal constant BUYER = address(0xB0B);
    address internal constant HUB = address(0xFEE);
    address internal constant GUARDIAN = address(0x60A4D);
    address internal constant ARBITER = address(0xA4B);
    uint256 internal constant ONE_JOB = 1e18;
    uint16 internal constant BPS = 3_000;
    uint256 internal constant BOND = 5_000;

    DatasetRegistry internal registry;
    NodeRegistry internal nodes;
    Market internal market;
    BlocklistToken internal money;
    uint256[] internal keys; // keys[i] signs for dataset i + 1

    function _open(address token, uint256 datasets) internal {
        vm.warp(1_800_000_000);
        money = BlocklistToken(token);
        nodes = new NodeRegistry();
        registry = new DatasetRegistry(address(this), nodes);
        market = new Market(registry, IERC20(token), HUB, GUARDIAN, BOND);
        registry.allowMarket(address(market), true);
        for (uint256 key = 1; key <= datasets; ++key) {
            keys.push(key);
            for (uint256 i = keys.length - 1; i > 0 && vm.addr(keys[i]) < vm.addr(keys[i - 1]); --i) {
                (keys[i], keys[i - 1]) = (keys[i - 1], keys[i]);
            }
        }
        for (uint256 i = 0; i < datasets; ++i) {
            _list(vm.addr(keys[i]), uint96((i + 1) * 1_000_003), BPS);
        }
    }

    function _list(address node, uint96 price, uint16 bps) internal returns (uint256 id) {
        vm.prank(HOSPITAL);
        (id,) = registry.listDataset(node, price, bps, keccak256("manifest"), "https://hub/manifest", "DATA");
    }

    function _datatoken(uint256 id) internal view returns (Datatoken) {
        return Datatoken(registry.dataset(id).datatoken);
    }

    /// @dev A job over datasets 1..count, in order.
    function _terms(uint256 count, uint16 quorum, uint96 reward, uint96 fee)
        internal
        view
        returns (IJobEscrow.Terms memory terms)
    {
        terms.buyer = BUYER;
        terms.rewardUnits = reward;
        terms.feeUnits = fee;
        terms.deadline = uint40(block.timestamp + 1 hours);
        terms.quorum = quorum;
        terms.specHash = keccak256("spec");
        for (uint256 i = 0; i < count; ++i) {
            terms.lines = bytes.concat(terms.lines, _packed(_line(i + 1)));
        }
        terms.amountUnits = uint96(_amount(terms));
    }

    /// @dev One dataset of a job, as the packed bytes hold it.
    struct JobLine {
        uint32 datasetId;
        address node;
        uint8 tier;
        uint96 priceUnits;
        uint96 computeCapUnits;
    }

    function _line(uint256 id) internal view returns (JobLine memory) {
        return JobLine(uint32(id), registry.dataset(id).node, 0, registry.dataset(id).priceUnits, 0);
    }

    function _packed(JobLine memory line) internal pure returns (bytes memory) {
        return abi.encodePacked(line.datasetId, line.node, line.tier, line.priceUnits, line.computeCapUnits);
    }

    function _count(IJobEscrow.Terms memory terms) internal pure returns (uint256) {
        return terms.lines.length / 49;
    }

    function _lineAt(IJobEscrow.Terms memory terms, uint256 i) internal pure returns (JobLine memory line) {
        bytes memory part = new bytes(49);
        for (uint256 k = 0; k < 49; ++k) {
            part[k] = terms.lines[49 * i + k];
        }
        line.datasetId = uint32(bytes4(_slice(part, 0)));
        line.node = address(bytes20(_slice(part, 4)));
        line.tier = uint8(part[24]);
        line.priceUnits = uint96(bytes12(_slice(part, 25)));
        line.computeCapUnits = uint96(bytes12(_slice(part, 37)));
    }

    function _slice(bytes memory part, uint256 from) private pure returns (bytes32 word) {
        for (uint256 k = 0; k < 32 && from + k < part.length; ++k) {
            word |= bytes32(part[from + k]) >> (8 * k);
        }
    }

    /// @dev Another line in place of line `i`; the amount follows.
    function _replace(IJobEscrow.Terms memory terms, uint256 i, JobLine memory line) internal pure {
        bytes memory part = _packed(line);
        for (uint256 k = 0; k < 49; ++k) {
            terms.lines[49 * i + k] = part[k];
        }
        terms.amountUnits = uint96(_amount(terms));
    }

    function _payByVoucher(IJobEscrow.Terms memory terms, uint256 i) internal pure {
        JobLine memory line = _lineAt(terms, i);
        line.priceUnits = 0;
        terms.vouchers |= uint64(1 << i);
        _replace(terms, i, line);
    }

    function _capCompute(IJobEscrow.Terms memory terms, uint256 i, uint96 units) internal pure {
        JobLine memory line = _lineAt(terms, i);
        line.computeCapUnits = units;
        _replace(terms, i, line);
    }

    function _arbitrate(IJobEscrow.Terms memory terms, uint32 window, uint96 bond, uint16 silentBps) internal pure {
        terms.arbiter = ARBITER;
        terms.disputeWindow = window;
        terms.bondUnits = bond;
        terms.silentBps = silentBps;
    }

    function _paidByVoucher(IJobEscrow.Terms memory terms, uint256 i) internal pure returns (bool) {
        return terms.vouchers >> i & 1 == 1;
    }

    function _amount(IJobEscrow.Terms memory terms) internal pure returns (uint256 units) {
        units = uint256(terms.rewardUnits) + terms.feeUnits;
        for (uint256 i = 0; i < _count(terms); ++i) {
            JobLine memory line = _lineAt(terms, i);
            units += uint256(line.priceUnits) + line.computeCapUnits;
        }
    }

    /// @dev Give the buyer what the job costs, vouchers included, and the allowances.
    function _prepare(IJobEscrow.Terms memory terms) internal {
        money.mint(BUYER, terms.amountUnits);
        vm.prank(BUYER);
        money.approve(address(market), type(uint256).max);
        for (uint256 i = 0; i < _count(terms); ++i) {
            if (!_paidByVoucher(terms, i)) continue;
            uint256 id = _lineAt(terms, i).datasetId;
            vm.prank(HOSPITAL);
            registry.mintDatatokens(id, BUYER, ONE_JOB);
            Datatoken datatoken = _datatoken(id);
            vm.prank(BUYER);
            datatoken.approve(address(market), ONE_JOB);
        }
    }

    /// @dev Paid, and accepted by nobody yet.
    function _create(IJobEscrow.Terms memory terms) internal returns (bytes32 jobId) {
        _prepare(terms);
        vm.prank(BUYER);
        return market.createJob(terms);
    }

    /// @dev Paid, and accepted by every node that the bank has the key of.
    function _fund(IJobEscrow.Terms memory terms) internal returns (bytes32 jobId) {
        jobId = _create(terms);
        uint64 who = 0;
        for (uint256 i = 0; i < _count(terms); ++i) {
            if (i < keys.length && _lineAt(terms, i).node == vm.addr(keys[i])) who |= uint64(1 << i);
        }
        _accept(terms, who);
    }

    function _acceptance(bytes32 jobId) internal pure returns (bytes32) {
        return keccak256(abi.encode(keccak256("Acceptance(bytes32 jobId)"), jobId));
    }

    function _accept(IJobEscrow.Terms memory terms, uint64 who) internal {
        market.accept(terms, who, _signedBy(who, _acceptance(market.hashTerms(terms))));
    }

    /// @dev One signature of `structHash` per bit of `who`, ascending.
    function _signedBy(uint64 who, bytes32 structHash) internal view returns (bytes[] memory signatures) {
        uint256[] memory indices = _indices(who);
        signatures = new bytes[](indices.length);
        for (uint256 k = 0; k < indices.length; ++k) {
            signatures[k] = _sign(keys[indices[k]], structHash);
        }
    }

    /// @dev Everybody in `worked` gets `reward`, and is charged epsilon 1.5 and delta 1e-6.
    function _result(uint256 count, uint64 worked, uint88 reward) internal pure returns (IJobEscrow.Result memory r) {
        r = IJobEscrow.Result(keccak256("model"), keccak256("report"), worked, new uint256[](count));
        for (uint256 i = 0; i < count; ++i) {
            if (worked >> i & 1 == 1) r.outcomes[i] = _outcome(0, reward);
        }
    }

    function _outcome(uint88 compute, uint88 reward) internal pure returns (uint256) {
        return uint256(compute) << 168 | uint256(reward) << 80 | uint256(1_500_000) << 40 | 1_000_000;
    }

    function _rewardOf(IJobEscrow.Result memory r, uint256 i) internal pure returns (uint256) {
        return r.outcomes[i] >> 80 & type(uint88).max;
    }

    function _typed(uint256 chain, address verifier, bytes32 structHash) internal pure returns (bytes32) {
        bytes32 domain = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("datahub"),
                keccak256("1"),
                chain,
                verifier
            )
        );
        return keccak256(abi.encodePacked(hex"1901", domain, structHash));
    }

    function _attestation(bytes32 jobId, IJobEscrow.Result memory r) internal pure returns (bytes32) {
        return keccak256(
            abi.encode(
                keccak256(
                    "Attestation(bytes32 jobId,bytes32 modelHash,bytes32 reportHash,uint64 worked,bytes32 outcomesHash)"
                ),
                jobId,
                r.modelHash,
                r.reportHash,
                r.worked,
                keccak256(abi.encodePacked(r.outcomes))
            )
        );
    }

    function _rejection(bytes32 jobId, bytes32 reason) internal pure returns (bytes32) {
        return keccak256(abi.encode(keccak256("Rejection(bytes32 jobId,bytes32 reasonHash)"), jobId, reason));
    }

    function _sign(uint256 key, bytes32 structHash) internal view returns (bytes memory) {
        return _signFor(key, block.chainid, address(market), structHash);
    }

    function _signFor(uint256 key, uint256 chain, address verifier, bytes32 structHash)
        internal
        pure
        returns (bytes memory)
    {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, _typed(chain, verifier, structHash));
        return abi.encodePacked(r, s, v);
    }

    /// @dev Signatures of the nodes whose bit is set in `who`.
    function _attest(IJobEscrow.Terms memory terms, IJobEscrow.Result memory r, uint64 who)
        internal
        view
        returns (bytes[] memory signatures)
    {
        return _signedBy(who, _attestation(market.hashTerms(terms), r));
    }

    /// @dev The positions of the set bits, ascending.
    function _indices(uint256 bits) internal pure returns (uint256[] memory found) {
        uint256 count = 0;
        for (uint256 rest = bits; rest != 0; rest &= rest - 1) {
            ++count;
        }
        found = new uint256[](count);
        count = 0;
        for (uint256 i = 0; i < 256; ++i) {
            if (bits >> i & 1 == 1) found[count++] = i;
        }
    }

    function _settle(IJobEscrow.Terms memory terms, IJobEscrow.Result memory r, uint64 who) internal {
        market.settle(terms, r, who, _attest(terms, r, who));
    }

    function _settleRefused(IJobEscrow.Terms memory terms, IJobEscrow.Result memory r, uint64 who, bytes memory refusal)
        internal
    {
        bytes[] memory signatures = _attest(terms, r, who);
        vm.expectRevert(refusal);
        market.settle(terms, r, who, signatures);
    }

    function _leaf(uint256 id, uint64 epoch, address account, uint64 weight) internal pure returns (bytes32) {
        return _node(keccak256(abi.encode(id, epoch, account, weight)), weight);
    }

    /// @dev The node above two others, its weight the sum of theirs.
    function _pair(bytes32 a, bytes32 b) internal pure returns (bytes32) {
        return _node(keccak256(a < b ? abi.encode(a, b) : abi.encode(b, a)), _weight(a) + _weight(b));
    }

    /// @dev 24 bytes of hash, 8 of weight: any pair of the two, honest or not.
    function _node(bytes32 hash, uint64 weight) internal pure returns (bytes32) {
        return bytes32(abi.encodePacked(bytes24(hash), weight));
    }

    function _weight(bytes32 node) internal pure returns (uint64) {
        return uint64(uint256(node));
    }

    function _proof(bytes32 sibling) internal pure returns (bytes32[] memory proof) {
        proof = new bytes32[](1);
        proof[0] = sibling;
    }

    function _one(uint256 id, uint64 epoch, uint64 weight, bytes32[] memory proof)
        internal
        pure
        returns (IRevenuePools.Claim[] memory claims)
    {
        claims = new IRevenuePools.Claim[](1);
        claims[0] = IRevenuePools.Claim(id, epoch, weight, proof);
    }
}
