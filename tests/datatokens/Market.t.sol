// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Market} from "@bank/Market.sol";
import {IJobEscrow} from "@bank/interfaces/IJobEscrow.sol";
import {IRevenuePools} from "@bank/interfaces/IRevenuePools.sol";
import {Bank} from "./Bank.sol";
import {BlocklistToken} from "./Tokens.sol";
import {bound, vm} from "./Vm.sol";

/// @dev Everybody at once: what a fuzzer may do to a market, and what it should then hold, kept in plain sums.
contract Crowd is Bank {
    uint256 private constant DATASETS = 3;
    uint256 private constant PEOPLE = 3;
    uint256 private constant MAX_JOBS = 40;

    bytes[] private _jobs; // the terms, encoded: the compiler cannot copy their list into storage
    mapping(uint256 job => uint256) public settlements;
    mapping(uint256 job => uint256) public refunds;
    mapping(uint256 id => mapping(uint64 epoch => uint128[PEOPLE])) private _weights;
    mapping(uint256 id => mapping(uint64 epoch => mapping(uint256 person => uint256))) public received;
    mapping(bytes32 action => uint256) public done;

    constructor() {
        _open(address(new BlocklistToken()), DATASETS);
    }

    function bank() external view returns (Market, BlocklistToken) {
        return (market, money);
    }

    function jobCount() external view returns (uint256) {
        return _jobs.length;
    }

    function job(uint256 i) public view returns (IJobEscrow.Terms memory) {
        return abi.decode(_jobs[i], (IJobEscrow.Terms));
    }

    function weightOf(uint256 id, uint64 epoch, uint256 person) external view returns (uint128) {
        return _weights[id][epoch][person];
    }

    function vouchersHeld(uint256 id) external view returns (uint256) {
        return _datatoken(id).balanceOf(address(market));
    }

    function personAt(uint256 person) public pure returns (address) {
        return address(uint160(0xC0FFEE00 + person));
    }

    // ---- what anybody may try

    function create(uint256 quorum, uint96 reward, uint256 fee, uint256 vouchers, uint256 lifetime) external {
        if (_jobs.length == MAX_JOBS) return;
        IJobEscrow.Terms memory terms = _terms(DATASETS, uint16(bound(quorum, 1, DATASETS)), reward / 2**20, 0);
        for (uint256 i = 0; i < DATASETS; ++i) {
            if (vouchers >> i & 1 == 1) (terms.datasets[i].voucher, terms.datasets[i].priceUnits) = (true, 0);
        }
        terms.feeUnits = uint96(bound(fee, 0, _amount(terms) / 20));
        terms.deadline = uint40(block.timestamp + bound(lifetime, 10 minutes, 1 hours));
        terms.specHash = bytes32(_jobs.length);
        _fund(terms);
        _jobs.push(abi.encode(terms));
        ++done["create"];
    }

    /// @dev Any job, whatever its state: the market must refuse what is not due.
    function settle(uint256 which, uint256 worked, uint96 reward) external {
        if (_jobs.length == 0) return;
        which = bound(which, 0, _jobs.length - 1);
        IJobEscrow.Terms memory terms = job(which);
        worked = bound(worked, 1, 2 ** DATASETS - 1);
        IJobEscrow.Result memory r =
            _result(DATASETS, worked, uint96(bound(reward, 0, terms.rewardUnits / DATASETS)));
        (uint256[] memory signers, bytes[] memory signatures) = _attest(terms, r, worked);
        try market.settle(terms, r, signers, signatures) {
            ++settlements[which];
            ++done["settle"];
        } catch {
            ++done["settle refused"];
        }
    }

    function refund(uint256 which) external {
        if (_jobs.length == 0) return;
        which = bound(which, 0, _jobs.length - 1);
        try market.refund(job(which)) {
            ++refunds[which];
            ++done["refund"];
        } catch {
            ++done["refund refused"];
        }
    }

    function reject(uint256 which, uint256 who) external {
        if (_jobs.length == 0) return;
        which = bound(which, 0, _jobs.length - 1);
        uint256[] memory signers = _indices(bound(who, 1, 2 ** DATASETS - 1));
        bytes32[] memory reasons = new bytes32[](signers.length);
        bytes[] memory signatures = new bytes[](signers.length);
        bytes32 jobId = market.hashTerms(job(which));
        for (uint256 k = 0; k < signers.length; ++k) {
            signatures[k] = _sign(keys[signers[k]], _rejection(jobId, reasons[k]));
        }
        try market.refundRejected(job(which), signers, reasons, signatures) {
            ++refunds[which];
            ++done["reject"];
        } catch {
            ++done["reject refused"];
        }
    }

    function pass(uint256 time) external {
        vm.warp(block.timestamp + bound(time, 1, 10 minutes));
    }

    function block_(bool yes, bool quiet) external {
        money.setBlocked(BUYER, yes);
        money.setQuiet(quiet);
    }

    function setPrice(uint256 id, uint96 price) external {
        vm.prank(HOSPITAL);
        registry.setPrice(bound(id, 1, DATASETS), price / 2**20 + 1);
    }

    function buy(uint256 id, uint256 count) external {
        id = bound(id, 1, DATASETS);
        count = bound(count, 1, 5);
        uint256 price = uint256(registry.dataset(id).priceUnits) * count;
        money.mint(BUYER, price);
        vm.prank(BUYER);
        money.approve(address(market), type(uint256).max);
        vm.prank(BUYER);
        market.buyDatatokens(id, count);
        ++done["buy"];
    }

    /// @dev A list of three people; every fourth one lies about the sum of its weights.
    function post(uint256 id, uint64[PEOPLE] memory weights, bool lie, bool really) external {
        id = bound(id, 1, DATASETS);
        uint64 epoch = market.pool(id).epoch;
        if (market.epoch(id, epoch).totalWeight != 0) ++epoch;
        uint128 total = 0;
        for (uint256 i = 0; i < PEOPLE; ++i) {
            _weights[id][epoch][i] = uint128(weights[i]) + 1;
            total += uint128(weights[i]) + 1;
        }
        if (lie && really) total = total / 2 + 1;
        (bytes32 a, bytes32 b, bytes32 c) = _leaves(id, epoch);
        vm.prank(HOSPITAL);
        market.postContributors(id, _pair(_pair(a, b), c), total, "");
        ++done["post"];
    }

    function claim(uint256 id, uint64 epoch, uint256 person) external {
        id = bound(id, 1, DATASETS);
        epoch = uint64(bound(epoch, 1, market.pool(id).epoch));
        person = bound(person, 0, PEOPLE - 1);
        (bytes32 a, bytes32 b, bytes32 c) = _leaves(id, epoch);
        bytes32[] memory proof = new bytes32[](person == 2 ? 1 : 2);
        if (person == 2) (proof[0]) = _pair(a, b);
        else (proof[0], proof[1]) = (person == 0 ? b : a, c);
        try market.claim(id, epoch, personAt(person), _weights[id][epoch][person], proof) returns (uint256 units) {
            received[id][epoch][person] += units;
            ++done["claim"];
        } catch {
            ++done["claim refused"];
        }
    }

    function _leaves(uint256 id, uint64 epoch) private view returns (bytes32, bytes32, bytes32) {
        uint128[PEOPLE] storage w = _weights[id][epoch];
        return (
            _leaf(id, epoch, personAt(0), w[0]), _leaf(id, epoch, personAt(1), w[1]), _leaf(id, epoch, personAt(2), w[2])
        );
    }

    function withdrawHospital(uint256 id) external {
        vm.prank(HOSPITAL);
        market.withdrawHospital(bound(id, 1, DATASETS), HOSPITAL);
        ++done["withdrawHospital"];
    }

    function withdrawCredit(bool hub) external {
        vm.prank(hub ? HUB : BUYER);
        try market.withdrawCredit(hub ? HUB : HOSPITAL) {
            ++done["withdrawCredit"];
        } catch {
            ++done["withdrawCredit refused"];
        }
    }

    function credits() external view returns (uint256) {
        return market.credit(HUB) + market.credit(BUYER);
    }
}

contract MarketInvariants {
    Crowd private _crowd;
    Market private _market;
    BlocklistToken private _money;

    function setUp() public {
        _crowd = new Crowd();
        (_market, _money) = _crowd.bank();
    }

    function targetContracts() external view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(_crowd);
    }

    /// @dev (1) What the market holds is what is in escrow, in credit and in the pools: no unit more, none less.
    function invariant_balanceIsEscrowsCreditsAndPools() public view {
        uint256 owed = _crowd.credits();
        uint256[4] memory vouchers;
        for (uint256 i = 0; i < _crowd.jobCount(); ++i) {
            if (_crowd.settlements(i) + _crowd.refunds(i) > 0) continue;
            IJobEscrow.Terms memory terms = _crowd.job(i);
            owed += uint256(terms.rewardUnits) + terms.feeUnits;
            for (uint256 k = 0; k < terms.datasets.length; ++k) {
                owed += terms.datasets[k].priceUnits;
                if (terms.datasets[k].voucher) ++vouchers[terms.datasets[k].datasetId];
            }
        }
        for (uint256 id = 1; id <= 3; ++id) {
            IRevenuePools.Pool memory pool = _market.pool(id);
            owed += pool.hospitalUnits;
            for (uint64 epoch = 1; epoch <= pool.epoch; ++epoch) {
                IRevenuePools.Epoch memory e = _market.epoch(id, epoch);
                owed += e.creditedUnits - e.claimedUnits;
            }
            vm.assertEq(_crowd.vouchersHeld(id), vouchers[id] * 1e18, "vouchers held are those of open jobs");
        }
        vm.assertEq(_money.balanceOf(address(_market)), owed, "balance");
    }

    /// @dev (2) A job ends at most once, and its status says how.
    function invariant_refundXorSettleEachOnce() public view {
        for (uint256 i = 0; i < _crowd.jobCount(); ++i) {
            (uint256 settled, uint256 refunded) = (_crowd.settlements(i), _crowd.refunds(i));
            vm.assertLe(settled + refunded, 1, "ended once");
            IJobEscrow.Status expected = settled == 1
                ? IJobEscrow.Status.Settled
                : refunded == 1 ? IJobEscrow.Status.Refunded : IJobEscrow.Status.Funded;
            vm.assertTrue(_market.job(_market.hashTerms(_crowd.job(i))).status == expected, "status");
        }
    }

    /// @dev (3) Per account nobody got more than its weight's part of the epoch, and together not more than the epoch.
    function invariant_nobodyClaimsMoreThanTheirShare() public view {
        for (uint256 id = 1; id <= 3; ++id) {
            for (uint64 epoch = 1; epoch <= _market.pool(id).epoch; ++epoch) {
                IRevenuePools.Epoch memory e = _market.epoch(id, epoch);
                uint256 sum = 0;
                for (uint256 person = 0; person < 3; ++person) {
                    uint256 got = _crowd.received(id, epoch, person);
                    sum += got;
                    vm.assertEq(_market.claimed(id, epoch, _crowd.personAt(person)), got, "noted is what was paid");
                    // got <= credited * weight / total, without a division that could hide a unit
                    uint256 most = uint256(e.creditedUnits) * _crowd.weightOf(id, epoch, person);
                    vm.assertLe(got * e.totalWeight, most, "share");
                }
                vm.assertEq(e.claimedUnits, sum, "claimed is the sum");
                vm.assertLe(sum, e.creditedUnits, "cap");
            }
        }
        for (uint256 person = 0; person < 3; ++person) {
            uint256 sum = 0;
            for (uint256 id = 1; id <= 3; ++id) {
                for (uint64 epoch = 1; epoch <= _market.pool(id).epoch; ++epoch) {
                    sum += _crowd.received(id, epoch, person);
                }
            }
            vm.assertEq(_money.balanceOf(_crowd.personAt(person)), sum, "tokens arrived");
        }
    }

    /// @dev The crowd can really do everything: without this the invariants could hold because nothing ever happens.
    function test_crowd__scripted__everyActionSucceedsAndIsRefusedOnce() public {
        uint64[3] memory weights = [uint64(4), 3, 1];
        for (uint256 i = 0; i < 3; ++i) {
            _crowd.create(1, 2 ** 30, 5, i, 1 hours);
        }
        _crowd.post(1, weights, false, false);
        _crowd.block_(true, true);
        _crowd.settle(0, 3, 7);
        _crowd.settle(0, 3, 7);
        _crowd.reject(1, 7);
        _crowd.reject(1, 7);
        _crowd.refund(2);
        for (uint256 i = 0; i < 7; ++i) {
            _crowd.pass(599);
        }
        _crowd.refund(2);
        _crowd.block_(false, false);
        _crowd.buy(1, 2);
        for (uint256 person = 0; person < 3; ++person) {
            _crowd.claim(1, 1, person);
            _crowd.claim(1, 1, person);
        }
        _crowd.withdrawHospital(1);
        _crowd.withdrawCredit(true);
        _crowd.withdrawCredit(true);
        _crowd.withdrawCredit(false);
        bytes32[13] memory actions = [
            bytes32("create"), "settle", "settle refused", "refund", "refund refused", "reject", "reject refused",
            "buy", "post", "claim", "claim refused", "withdrawHospital", "withdrawCredit"
        ];
        for (uint256 i = 0; i < actions.length; ++i) {
            vm.assertTrue(_crowd.done(actions[i]) > 0, string(abi.encodePacked(actions[i])));
        }
        invariant_balanceIsEscrowsCreditsAndPools();
        invariant_refundXorSettleEachOnce();
        invariant_nobodyClaimsMoreThanTheirShare();
    }
}
