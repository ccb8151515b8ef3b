// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {DatasetRegistry} from "@bank/DatasetRegistry.sol";
import {Datatoken} from "@bank/Datatoken.sol";
import {Market} from "@bank/Market.sol";
import {IJobEscrow} from "@bank/interfaces/IJobEscrow.sol";
import {BlocklistToken} from "./Tokens.sol";
import {vm} from "./Vm.sol";

/// @dev A registry, a market and datasets 1..N whose node keys ascend with the id. The EIP-712 digests are built by
///      hand here, so a slip in the contract's own hashing cannot hide.
abstract contract Bank {
    address internal constant HOSPITAL = address(0xA11CE);
    address internal constant BUYER = address(0xB0B);
    address internal constant HUB = address(0xFEE);
    uint256 internal constant ONE_JOB = 1e18;
    uint16 internal constant BPS = 3_000;

    DatasetRegistry internal registry;
    Market internal market;
    BlocklistToken internal money;
    uint256[] internal keys; // keys[i] signs for dataset i + 1

    function _open(address token, uint256 datasets) internal {
        vm.warp(1_800_000_000);
        money = BlocklistToken(token);
        registry = new DatasetRegistry(address(this));
        market = new Market(registry, IERC20(token), HUB);
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
        terms.datasets = new IJobEscrow.DatasetTerm[](count);
        for (uint256 i = 0; i < count; ++i) {
            terms.datasets[i] = _line(i + 1);
        }
    }

    function _line(uint256 id) internal view returns (IJobEscrow.DatasetTerm memory) {
        return IJobEscrow.DatasetTerm(uint64(id), registry.dataset(id).node, registry.dataset(id).priceUnits, false);
    }

    function _amount(IJobEscrow.Terms memory terms) internal pure returns (uint256 units) {
        units = uint256(terms.rewardUnits) + terms.feeUnits;
        for (uint256 i = 0; i < terms.datasets.length; ++i) {
            units += terms.datasets[i].priceUnits;
        }
    }

    /// @dev Give the buyer what the job costs, vouchers included, and the allowances.
    function _prepare(IJobEscrow.Terms memory terms) internal {
        money.mint(BUYER, _amount(terms));
        vm.prank(BUYER);
        money.approve(address(market), type(uint256).max);
        for (uint256 i = 0; i < terms.datasets.length; ++i) {
            if (!terms.datasets[i].voucher) continue;
            vm.prank(HOSPITAL);
            registry.mintDatatokens(terms.datasets[i].datasetId, BUYER, ONE_JOB);
            Datatoken datatoken = _datatoken(terms.datasets[i].datasetId);
            vm.prank(BUYER);
            datatoken.approve(address(market), ONE_JOB);
        }
    }

    function _fund(IJobEscrow.Terms memory terms) internal returns (bytes32 jobId) {
        _prepare(terms);
        vm.prank(BUYER);
        return market.createJob(terms);
    }

    /// @dev Everybody in `worked` gets `reward`.
    function _result(uint256 count, uint256 worked, uint96 reward) internal pure returns (IJobEscrow.Result memory r) {
        r = IJobEscrow.Result(keccak256("model"), keccak256("report"), worked, new uint96[](count));
        for (uint256 i = 0; i < count; ++i) {
            if (worked >> i & 1 == 1) r.rewardUnits[i] = reward;
        }
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
                    "Attestation(bytes32 jobId,bytes32 modelHash,bytes32 reportHash,uint256 worked,bytes32 rewardsHash)"
                ),
                jobId,
                r.modelHash,
                r.reportHash,
                r.worked,
                keccak256(abi.encodePacked(r.rewardUnits))
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
    function _attest(IJobEscrow.Terms memory terms, IJobEscrow.Result memory r, uint256 who)
        internal
        view
        returns (uint256[] memory signers, bytes[] memory signatures)
    {
        bytes32 structHash = _attestation(market.hashTerms(terms), r);
        signers = _indices(who);
        signatures = new bytes[](signers.length);
        for (uint256 k = 0; k < signers.length; ++k) {
            signatures[k] = _sign(keys[signers[k]], structHash);
        }
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

    function _settle(IJobEscrow.Terms memory terms, IJobEscrow.Result memory r, uint256 who) internal {
        (uint256[] memory signers, bytes[] memory signatures) = _attest(terms, r, who);
        market.settle(terms, r, signers, signatures);
    }

    function _settleRefused(
        IJobEscrow.Terms memory terms,
        IJobEscrow.Result memory r,
        uint256 who,
        bytes memory refusal
    ) internal {
        (uint256[] memory signers, bytes[] memory signatures) = _attest(terms, r, who);
        vm.expectRevert(refusal);
        market.settle(terms, r, signers, signatures);
    }

    function _leaf(uint256 id, uint64 epoch, address account, uint128 weight) internal pure returns (bytes32) {
        return keccak256(bytes.concat(keccak256(abi.encode(id, epoch, account, weight))));
    }

    function _pair(bytes32 a, bytes32 b) internal pure returns (bytes32) {
        return a < b ? keccak256(abi.encode(a, b)) : keccak256(abi.encode(b, a));
    }

    function _proof(bytes32 sibling) internal pure returns (bytes32[] memory proof) {
        proof = new bytes32[](1);
        proof[0] = sibling;
    }
}
