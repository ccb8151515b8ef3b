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
    bytes[] private _results; // what was attested, encoded; empty before
    mapping(uint256 job => address) public disputers; // whose bond is held
    mapping(uint256 job => uint256) public settlements;
    mapping(uint256 job => uint256) public refunds;
    mapping(uint256 id => mapping(uint64 epoch => uint64[PEOPLE])) private _weights;
    mapping(uint256 id => mapping(uint64 epoch => mapping(uint256 person => uint256))) public received;
    mapping(bytes32 action => uint256) public done;
    address private immutable _director = msg.sender; // the test itself: some acts are not for the fuzzer
    mapping(uint256 id => uint256[5]) private _standingBefore;

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

    function weightOf(uint256 id, uint64 epoch, uint256 person) external view returns (uint64) {
        return _weights[id][epoch][person];
    }

    /// @dev What a job holds while it is open, and its bond.
    function held(uint256 i) external view returns (uint256 units, uint256 vouchers) {
        IJobEscrow.Terms memory terms = job(i);
        return (terms.amountUnits + (disputers[i] == address(0) ? 0 : terms.bondUnits), terms.vouchers);
    }

    /// @dev A job's slot may only go forward; the counters of a hospital only up.
    function standingFell(uint256 id) external returns (bool fell) {
        if (msg.sender != _director) return false;
        IRevenuePools.Standing memory now_ = market.standing(id);
        uint256[5] memory figures =
            [uint256(now_.accepted), now_.settled, now_.failed, now_.disputed, now_.lost];
        for (uint256 i = 0; i < 5; ++i) {
            if (figures[i] < _standingBefore[id][i]) fell = true;
            _standingBefore[id][i] = figures[i];
        }
    }

    function vouchersHeld(uint256 id) external view returns (uint256) {
        return _datatoken(id).balanceOf(address(market));
    }

    function personAt(uint256 person) public pure returns (address) {
        return address(uint160(0xC0FFEE00 + person));
    }

    // ---- what anybody may try

    function create(uint256 quorum, uint88 reward, uint256 fee, uint256 vouchers, uint256 lifetime, uint256 window)
        external
    {
        if (_jobs.length == MAX_JOBS) return;
        IJobEscrow.Terms memory terms = _terms(DATASETS, uint16(bound(quorum, 1, DATASETS)), reward / 2**20, 0);
        for (uint256 i = 0; i < DATASETS; ++i) {
            if (vouchers >> i & 1 == 1) _payByVoucher(terms, i);
            _capCompute(terms, i, uint96(reward / 2 ** 40));
        }
        if (window % 2 == 1) _arbitrate(terms, uint32(bound(window, 1, 20 minutes)), reward / 2 ** 30, 2_500);
        terms.feeUnits = uint96(bound(fee, 0, _amount(terms) / 20));
        terms.amountUnits = uint96(_amount(terms));
        terms.deadline = uint40(block.timestamp + bound(lifetime, 10 minutes, 1 hours));
        terms.specHash = bytes32(_jobs.length);
        _create(terms);
        _jobs.push(abi.encode(terms));
        _results.push("");
        ++done["create"];
    }

    function accept(uint256 which, uint256 who) external {
        if (_jobs.length == 0) return;
        IJobEscrow.Terms memory terms = job(bound(which, 0, _jobs.length - 1));
        uint64 bits = uint64(bound(who, 1, 2 ** DATASETS - 1));
        bytes[] memory signatures = _signedBy(bits, _acceptance(market.hashTerms(terms)));
        try market.accept(terms, bits, signatures) {
            ++done["accept"];
        } catch {
            ++done["accept refused"];
        }
    }

    /// @dev Any job, whatever its state: the market must refuse what is not due.
    function settle(uint256 which, uint256 worked, uint88 reward) external {
        if (_jobs.length == 0) return;
        which = bound(which, 0, _jobs.length - 1);
        IJobEscrow.Terms memory terms = job(which);
        IJobEscrow.Result memory r = _result(DATASETS, uint64(bound(worked, 1, 2 ** DATASETS - 1)), 0);
        for (uint256 i = 0; i < DATASETS; ++i) {
            if (r.worked >> i & 1 == 0) continue;
            uint256 cap = _lineAt(terms, i).computeCapUnits;
            r.outcomes[i] =
                _outcome(uint88(bound(reward, 0, cap)), uint88(bound(reward, 0, terms.rewardUnits / DATASETS)));
        }
        bytes[] memory signatures = _attest(terms, r, r.worked);
        try market.settle(terms, r, r.worked, signatures) {
            _results[which] = abi.encode(r);
            if (terms.disputeWindow == 0) ++settlements[which];
            ++done[terms.disputeWindow == 0 ? bytes32("settle") : bytes32("propose")];
        } catch {
            ++done["settle refused"];
        }
    }

    function _attested(uint256 which) private view returns (IJobEscrow.Result memory) {
        return _results[which].length == 0
            ? _result(DATASETS, 1, 0)
            : abi.decode(_results[which], (IJobEscrow.Result));
    }

    function dispute(uint256 which, bool byNode) external {
        if (_jobs.length == 0) return;
        which = bound(which, 0, _jobs.length - 1);
        IJobEscrow.Terms memory terms = job(which);
        address who = byNode ? vm.addr(keys[0]) : BUYER;
        money.mint(who, terms.bondUnits);
        vm.prank(who);
        money.approve(address(market), type(uint256).max);
        vm.prank(who);
        try market.dispute(terms, _attested(which)) {
            disputers[which] = who;
            ++done["dispute"];
        } catch {
            ++done["dispute refused"];
        }
    }

    function rule(uint256 which, uint256 bps) external {
        if (_jobs.length == 0) return;
        which = bound(which, 0, _jobs.length - 1);
        vm.prank(ARBITER);
        try market.rule(job(which), _attested(which), bound(bps, 0, 10_000)) {
            ++settlements[which];
            ++done["rule"];
        } catch {
            ++done["rule refused"];
        }
    }

    function finalize(uint256 which) public {
        if (_jobs.length == 0) return;
        which = bound(which, 0, _jobs.length - 1);
        try market.finalize(job(which), _attested(which)) {
            ++settlements[which];
            ++done["finalize"];
        } catch {
            ++done["finalize refused"];
        }
    }

    function refund(uint256 which) public {
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
        uint64 bits = uint64(bound(who, 1, 2 ** DATASETS - 1));
        bytes[] memory signatures = _signedBy(bits, _rejection(market.hashTerms(job(which)), 0));
        try market.refundRejected(job(which), bits, new bytes32[](signatures.length), signatures) {
            ++refunds[which];
            ++done["reject"];
        } catch {
            ++done["reject refused"];
        }
    }

    /// @dev The last act: everybody is blocklisted, nobody but a passer-by is left, all windows and deadlines are over.
    function endEverything() external {
        if (msg.sender != _director) return;
        for (uint256 i = 0; i < DATASETS; ++i) {
            money.setBlocked(vm.addr(keys[i]), true);
        }
        money.setBlocked(BUYER, true);
        money.setBlocked(HUB, true);
        vm.warp(vm.getBlockTimestamp() + 366 days);
        for (uint256 i = 0; i < _jobs.length; ++i) {
            refund(i);
            finalize(i);
        }
    }

    function pass(uint256 time) external {
        vm.warp(vm.getBlockTimestamp() + bound(time, 1, 10 minutes));
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

    /// @dev A list of three people, for the next epoch; every fourth one lies about the sum of its weights.
    function post(uint256 id, uint32[PEOPLE] memory weights, bool lie, bool really) external {
        id = bound(id, 1, DATASETS);
        uint64 epoch = market.pool(id).epoch + 1;
        for (uint256 i = 0; i < PEOPLE; ++i) {
            _weights[id][epoch][i] = uint64(weights[i]) + 1;
        }
        (bytes32 a, bytes32 b, bytes32 c) = _leaves(id, epoch);
        bytes32 root = _pair(_pair(a, b), c);
        if (lie && really) root = _node(root, _weight(root) / 2 + 1);
        vm.prank(HOSPITAL);
        market.postContributors(id, root, "");
        ++done["post"];
    }

    /// @dev The chain's clock, not three days: jobs would hardly ever be settled in time.
    function activate(uint256 id) external {
        id = bound(id, 1, DATASETS);
        if (market.pendingContributors(id).root == 0) return;
        uint256 time = block.timestamp;
        vm.warp(time + 3 days);
        market.activateContributors(id);
        vm.warp(time);
        ++done["activate"];
    }

    function claim(uint256 id, uint64 epoch, uint256 person) external {
        id = bound(id, 1, DATASETS);
        epoch = uint64(bound(epoch, 1, uint256(market.pool(id).epoch) + 1));
        person = bound(person, 0, PEOPLE - 1);
        (bytes32 a, bytes32 b, bytes32 c) = _leaves(id, epoch);
        bytes32[] memory proof = new bytes32[](person == 2 ? 1 : 2);
        if (person == 2) (proof[0]) = _pair(a, b);
        else (proof[0], proof[1]) = (person == 0 ? b : a, c);
        try market.claimOnBehalf(personAt(person), _one(id, epoch, _weights[id][epoch][person], proof)) returns (
            uint256 units
        ) {
            received[id][epoch][person] += units;
            ++done["claim"];
        } catch {
            ++done["claim refused"];
        }
    }

    function _leaves(uint256 id, uint64 epoch) private view returns (bytes32, bytes32, bytes32) {
        uint64[PEOPLE] storage w = _weights[id][epoch];
        return (
            _leaf(id, epoch, personAt(0), w[0]), _leaf(id, epoch, personAt(1), w[1]), _leaf(id, epoch, personAt(2), w[2])
        );
    }

    function withdrawHospital(uint256 id) external {
        vm.prank(HOSPITAL);
        try market.withdrawHospital(bound(id, 1, DATASETS), HOSPITAL) {
            ++done["withdrawHospital"];
        } catch {
            ++done["withdrawHospital refused"];
        }
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
        return market.credit(HUB) + market.credit(BUYER) + market.credit(vm.addr(keys[0]));
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
            (uint256 units, uint256 bits) = _crowd.held(i);
            owed += units;
            for (uint256 id = 1; id <= 3; ++id) {
                if (bits >> (id - 1) & 1 == 1) ++vouchers[id];
            }
        }
        for (uint256 id = 1; id <= 3; ++id) {
            IRevenuePools.Pool memory pool = _market.pool(id);
            owed += pool.hospitalUnits - _market.withdrawn(id) + pool.contributorUnits;
            uint256 credited = 0;
            for (uint64 epoch = 1; epoch <= pool.epoch || epoch == 1; ++epoch) {
                IRevenuePools.Epoch memory e = _market.epoch(id, epoch);
                owed -= e.claimedUnits;
                credited += e.creditedUnits;
            }
            vm.assertEq(credited, pool.contributorUnits, "every unit of the contributors belongs to one epoch");
            vm.assertEq(_crowd.vouchersHeld(id), vouchers[id] * 1e18, "vouchers held are those of open jobs");
        }
        vm.assertEq(_money.balanceOf(address(_market)), owed, "balance");
    }

    /// @dev (2) A job ends at most once, and its status says how.
    function invariant_refundXorSettleEachOnce() public view {
        for (uint256 i = 0; i < _crowd.jobCount(); ++i) {
            (uint256 settled, uint256 refunded) = (_crowd.settlements(i), _crowd.refunds(i));
            vm.assertLe(settled + refunded, 1, "ended once");
            bytes32 jobId = _market.hashTerms(_crowd.job(i));
            IJobEscrow.Status status = _market.job(jobId).status;
            if (settled == 1) vm.assertTrue(status == IJobEscrow.Status.Settled, "settled");
            else if (refunded == 1) vm.assertTrue(status == IJobEscrow.Status.Refunded, "refunded");
            else if (_crowd.disputers(i) != address(0)) vm.assertTrue(status == IJobEscrow.Status.Disputed, "disputed");
            else if (_market.proposal(jobId) != 0) vm.assertTrue(status == IJobEscrow.Status.Proposed, "proposed");
            else vm.assertTrue(status == IJobEscrow.Status.Funded, "funded");
        }
    }

    /// @dev (4) What the escrow has counted of a hospital never goes down, and nobody does more than was agreed to.
    function invariant_standingOnlyGrows() public {
        for (uint256 id = 1; id <= 3; ++id) {
            vm.assertTrue(!_crowd.standingFell(id), "monotone");
            IRevenuePools.Standing memory s = _market.standing(id);
            vm.assertLe(uint256(s.settled) + s.failed, s.accepted, "settled or failed: once accepted, at most once");
            vm.assertLe(s.lost, s.disputed, "lost");
        }
    }

    /// @dev (5) Liveness: when all time is over, any passer-by can end every job, whoever is absent or blocklisted.
    function afterInvariant() public {
        _crowd.endEverything();
        for (uint256 i = 0; i < _crowd.jobCount(); ++i) {
            vm.assertEq(_crowd.settlements(i) + _crowd.refunds(i), 1, "ended");
        }
        invariant_balanceIsEscrowsCreditsAndPools();
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
        uint32[3] memory weights = [uint32(4), 3, 1];
        for (uint256 i = 0; i < 6; ++i) {
            _crowd.create(1, 2 ** 50, 5, i, 1 hours, i < 3 ? 0 : 601);
            _crowd.accept(i, 7);
        }
        _crowd.accept(0, 1);
        _crowd.create(1, 2 ** 50, 5, 0, 1 hours, 0);
        _crowd.post(1, weights, false, false);
        _crowd.block_(true, true);
        _crowd.settle(0, 3, 7);
        _crowd.settle(0, 3, 7);
        _crowd.reject(1, 7);
        _crowd.reject(1, 7);
        _crowd.refund(2);
        for (uint256 i = 3; i < 6; ++i) {
            _crowd.settle(i, 7, 7);
        }
        _crowd.finalize(3);
        _crowd.block_(false, false);
        _crowd.dispute(4, true);
        _crowd.dispute(4, false);
        _crowd.dispute(5, false);
        _crowd.rule(4, 10_000);
        _crowd.rule(5, 400);
        _crowd.rule(5, 400);
        _crowd.block_(true, true);
        for (uint256 i = 0; i < 7; ++i) {
            _crowd.pass(599);
        }
        _crowd.finalize(3);
        _crowd.refund(2);
        _crowd.block_(false, false);
        _crowd.buy(1, 2);
        for (uint256 person = 0; person < 3; ++person) {
            _crowd.claim(1, 1, person);
            _crowd.claim(1, 1, person);
        }
        _crowd.withdrawHospital(1);
        _crowd.withdrawHospital(1);
        _crowd.post(1, weights, false, false);
        _crowd.activate(1);
        _crowd.withdrawCredit(true);
        _crowd.withdrawCredit(true);
        _crowd.withdrawCredit(false);
        bytes32[24] memory actions = [
            bytes32("create"), "accept", "accept refused", "settle", "propose", "settle refused", "refund",
            "refund refused", "reject", "reject refused", "dispute", "dispute refused", "rule", "rule refused",
            "finalize", "finalize refused", "buy", "post", "claim", "claim refused", "withdrawHospital",
            "withdrawCredit", "activate", "withdrawHospital refused"
        ];
        for (uint256 i = 0; i < actions.length; ++i) {
            vm.assertTrue(_crowd.done(actions[i]) > 0, string(abi.encodePacked(actions[i])));
        }
        invariant_balanceIsEscrowsCreditsAndPools();
        invariant_refundXorSettleEachOnce();
        invariant_nobodyClaimsMoreThanTheirShare();
        invariant_standingOnlyGrows();
        afterInvariant();
    }
}
