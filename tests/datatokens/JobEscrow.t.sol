// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {Market} from "@bank/Market.sol";
import {UnexpectedAmountReceived} from "@bank/RevenuePools.sol";
import {IDatasetRegistry} from "@bank/interfaces/IDatasetRegistry.sol";
import {IJobEscrow} from "@bank/interfaces/IJobEscrow.sol";
import {Bank} from "./Bank.sol";
import {BlocklistToken, CallbackToken, ContractWallet, FeeOnTransferToken} from "./Tokens.sol";
import {bound, vm} from "./Vm.sol";

contract JobEscrowTest is Bank {
    address private constant ANYONE = address(0xCAFE);

    function setUp() public {
        _open(address(new BlocklistToken()), 3);
    }

    function _createRefused(IJobEscrow.Terms memory terms, bytes memory refusal) private {
        _prepare(terms);
        vm.expectRevert(refusal);
        vm.prank(BUYER);
        market.createJob(terms);
    }

    // ---- createJob

    function test_createJob__everythingInOrder__holdsTheWholeAmountInOneSlot() public {
        IJobEscrow.Terms memory terms = _terms(3, 2, 500, 7);
        bytes32 jobId = _fund(terms);
        vm.assertTrue(
            jobId == keccak256(abi.encode(block.chainid, address(market), keccak256(abi.encode(terms)))), "job id"
        );
        IJobEscrow.Job memory job = market.job(jobId);
        vm.assertEq(job.amountUnits, 6 * 1_000_003 + 507, "amount");
        vm.assertEq(job.deadline, terms.deadline, "deadline");
        vm.assertTrue(job.status == IJobEscrow.Status.Funded, "funded");
        vm.assertEq(money.balanceOf(address(market)), job.amountUnits, "held");
        vm.assertEq(money.balanceOf(BUYER), 0, "the buyer paid exactly that");
    }

    function test_createJob__notTheBuyer__refuses() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.NotBuyer.selector, BUYER, ANYONE));
        vm.prank(ANYONE);
        market.createJob(terms);
    }

    function test_createJob__sameTermsTwice__refuses() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        bytes32 jobId = _fund(terms);
        _createRefused(terms, abi.encodeWithSelector(IJobEscrow.JobExists.selector, jobId));
    }

    function test_createJob__sameTermsAfterARefund__refuses() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        bytes32 jobId = _fund(terms);
        vm.warp(terms.deadline + 1);
        market.refund(terms);
        _createRefused(terms, abi.encodeWithSelector(IJobEscrow.JobExists.selector, jobId));
    }

    function test_createJob__noneOrTooManyDatasets__refuses() public {
        IJobEscrow.Terms memory terms = _terms(0, 1, 5, 0);
        _createRefused(terms, abi.encodeWithSelector(IJobEscrow.BadDatasetCount.selector, 0));
        terms.datasets = new IJobEscrow.DatasetTerm[](65);
        _createRefused(terms, abi.encodeWithSelector(IJobEscrow.BadDatasetCount.selector, 65));
    }

    function test_createJob__quorumOutsideTheList__refuses() public {
        _createRefused(_terms(2, 0, 0, 0), abi.encodeWithSelector(IJobEscrow.BadQuorum.selector, 0, 2));
        _createRefused(_terms(2, 3, 0, 0), abi.encodeWithSelector(IJobEscrow.BadQuorum.selector, 3, 2));
    }

    function test_createJob__deadlineTooNearOrTooFar__refuses() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        uint40[2] memory wrong = [uint40(block.timestamp + 10 minutes - 1), uint40(block.timestamp + 365 days + 1)];
        for (uint256 i = 0; i < 2; ++i) {
            terms.deadline = wrong[i];
            _createRefused(terms, abi.encodeWithSelector(IJobEscrow.BadDeadline.selector, wrong[i], block.timestamp));
        }
    }

    function test_createJob__deadlineAtItsLimits__accepts() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        terms.deadline = uint40(block.timestamp + 10 minutes);
        _fund(terms);
        terms.deadline = uint40(block.timestamp + 365 days);
        _fund(terms);
    }

    function test_createJob__oneKeyListedTwice__cannotMeetAQuorumOfTwo() public {
        uint256 twin = _list(vm.addr(keys[0]), 5, BPS);
        IJobEscrow.Terms memory terms = _terms(2, 2, 0, 0);
        terms.datasets[1] = _line(twin);
        _createRefused(terms, abi.encodeWithSelector(IJobEscrow.NodesNotAscending.selector, 1));
    }

    function test_createJob__nodesDescending__refuses() public {
        IJobEscrow.Terms memory terms = _terms(2, 1, 0, 0);
        (terms.datasets[0], terms.datasets[1]) = (terms.datasets[1], terms.datasets[0]);
        _createRefused(terms, abi.encodeWithSelector(IJobEscrow.NodesNotAscending.selector, 1));
    }

    function test_createJob__priceChangedSinceTheQuote__refuses() public {
        IJobEscrow.Terms memory terms = _terms(2, 1, 0, 0);
        vm.prank(HOSPITAL);
        registry.setPrice(2, 9);
        _createRefused(terms, abi.encodeWithSelector(IJobEscrow.PriceMismatch.selector, 2, 2 * 1_000_003, 9));
    }

    function test_createJob__priceBesideAVoucher__refuses() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        terms.datasets[0].voucher = true;
        _createRefused(terms, abi.encodeWithSelector(IJobEscrow.PriceMismatch.selector, 1, 1_000_003, 0));
    }

    function test_createJob__nodeKeyRotatedSinceTheQuote__refuses() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        address old = vm.addr(keys[0]);
        vm.prank(HOSPITAL);
        registry.setNode(1, ANYONE);
        _createRefused(terms, abi.encodeWithSelector(IJobEscrow.NodeMismatch.selector, 1, old, ANYONE));
    }

    function test_createJob__datasetNotListed__refuses() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        terms.datasets[0].datasetId = 99;
        _createRefused(terms, abi.encodeWithSelector(IDatasetRegistry.UnknownDataset.selector, 99));
    }

    function test_createJob__feeAboveFivePercent__refuses() public {
        vm.prank(HOSPITAL);
        registry.setPrice(1, 950);
        _fund(_terms(1, 1, 0, 50)); // 5 % of 1,000
        _createRefused(_terms(1, 1, 0, 51), abi.encodeWithSelector(IJobEscrow.FeeTooHigh.selector, 51, 50));
        uint96 huge = type(uint96).max - 950; // a fee so high that 10_000 times it would not fit 96 bits
        _createRefused(
            _terms(1, 1, 0, huge),
            abi.encodeWithSelector(IJobEscrow.FeeTooHigh.selector, huge, uint256(type(uint96).max) * 500 / 10_000)
        );
    }

    function test_createJob__amountAbove96Bits__refuses() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, type(uint96).max, 0);
        _createRefused(
            terms, abi.encodeWithSelector(SafeCast.SafeCastOverflowedUintDowncast.selector, 96, _amount(terms))
        );
    }

    function test_createJob__feeOnTransferToken__refuses() public {
        FeeOnTransferToken token = new FeeOnTransferToken();
        market = new Market(registry, token, HUB, BOND);
        money = BlocklistToken(address(token));
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        _createRefused(terms, abi.encodeWithSelector(UnexpectedAmountReceived.selector, 990_003, 1_000_003));
    }

    function test_createJob__freeDatasetAndNoReward__needsNoMoney() public {
        vm.prank(HOSPITAL);
        registry.setPrice(1, 0);
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        bytes32 jobId = _fund(terms);
        _settle(terms, _result(1, 1, 0), 1);
        vm.assertTrue(market.job(jobId).status == IJobEscrow.Status.Settled, "settled");
    }

    // ---- settle

    function test_settle__quorumOfTwoOfThree__paysWhoWorkedAndGivesTheRestBack() public {
        IJobEscrow.Terms memory terms = _terms(3, 2, 1_000, 90);
        terms.datasets[1].voucher = true;
        terms.datasets[1].priceUnits = 0;
        bytes32 jobId = _fund(terms);
        _settle(terms, _result(3, 3, 300), 3); // datasets 1 and 2 worked and signed, 3 did neither
        vm.assertTrue(market.job(jobId).status == IJobEscrow.Status.Settled, "settled");
        // dataset 1: price + reward, 30 % of it rounded down to the contributors
        vm.assertEq(market.epoch(1, 1).creditedUnits, uint256(1_000_303) * 3 / 10, "contributors of 1");
        vm.assertEq(market.pool(1).hospitalUnits, 1_000_303 - uint256(1_000_303) * 3 / 10, "hospital of 1");
        vm.assertEq(market.epoch(2, 1).creditedUnits + market.pool(2).hospitalUnits, 300, "reward only beside a voucher");
        vm.assertEq(market.epoch(3, 1).creditedUnits + market.pool(3).hospitalUnits, 0, "no work, no pay");
        vm.assertEq(market.credit(HUB), 90, "fee");
        vm.assertEq(money.balanceOf(BUYER), 3 * 1_000_003 + 1_000 - 600, "change: price of 3 and the reward left");
        vm.assertEq(_datatoken(2).totalSupply(), 0, "the used voucher is burned");
    }

    function test_settle__voucherOfADatasetThatDidNotWork__comesBack() public {
        IJobEscrow.Terms memory terms = _terms(2, 1, 0, 0);
        terms.datasets[0].voucher = true;
        terms.datasets[0].priceUnits = 0;
        _fund(terms);
        vm.assertEq(_datatoken(1).balanceOf(address(market)), ONE_JOB, "held meanwhile");
        _settle(terms, _result(2, 2, 0), 2);
        vm.assertEq(_datatoken(1).balanceOf(BUYER), ONE_JOB, "voucher is back");
    }

    function test_settle__atTheDeadline__works() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        _fund(terms);
        vm.warp(terms.deadline);
        _settle(terms, _result(1, 1, 0), 1);
    }

    function test_settle__afterTheDeadline__refuses() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        _fund(terms);
        vm.warp(terms.deadline + 1);
        _settleRefused(
            terms,
            _result(1, 1, 0),
            1,
            abi.encodeWithSelector(IJobEscrow.DeadlinePassed.selector, terms.deadline, terms.deadline + 1)
        );
    }

    function test_settle__jobNeverFunded__refuses() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        _settleRefused(terms, _result(1, 1, 0), 1, _wrongStatus(terms, IJobEscrow.Status.None));
    }

    function test_settle__termsChangedByOneUnit__isAnotherJob() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 10, 0);
        _fund(terms);
        terms.rewardUnits = 11;
        _settleRefused(terms, _result(1, 1, 11), 1, _wrongStatus(terms, IJobEscrow.Status.None));
    }

    function test_settle__twice__refuses() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        _fund(terms);
        _settle(terms, _result(1, 1, 0), 1);
        _settleRefused(terms, _result(1, 1, 0), 1, _wrongStatus(terms, IJobEscrow.Status.Settled));
    }

    function test_settle__afterARefund__refuses() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        _fund(terms);
        vm.warp(terms.deadline + 1);
        market.refund(terms);
        vm.warp(terms.deadline); // even if time could run backwards
        _settleRefused(terms, _result(1, 1, 0), 1, _wrongStatus(terms, IJobEscrow.Status.Refunded));
    }

    function _wrongStatus(IJobEscrow.Terms memory terms, IJobEscrow.Status status) private view returns (bytes memory) {
        return abi.encodeWithSelector(IJobEscrow.WrongStatus.selector, market.hashTerms(terms), status);
    }

    function test_settle__tooFewSignatures__refuses() public {
        IJobEscrow.Terms memory terms = _terms(3, 2, 0, 0);
        _fund(terms);
        _settleRefused(terms, _result(3, 7, 0), 1, abi.encodeWithSelector(IJobEscrow.QuorumNotMet.selector, 1, 2));
    }

    function test_settle__signersWithoutSignatures__refuses() public {
        IJobEscrow.Terms memory terms = _terms(3, 2, 0, 0);
        _fund(terms);
        IJobEscrow.Result memory r = _result(3, 7, 0);
        (, bytes[] memory one) = _attest(terms, r, 1);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.QuorumNotMet.selector, 1, 2));
        market.settle(terms, r, _indices(3), one);
    }

    function test_settle__tooFewWorked__refuses() public {
        IJobEscrow.Terms memory terms = _terms(3, 2, 0, 0);
        _fund(terms);
        _settleRefused(terms, _result(3, 4, 0), 7, abi.encodeWithSelector(IJobEscrow.QuorumNotMet.selector, 1, 2));
    }

    function test_settle__workedBitBeyondTheList__refuses() public {
        IJobEscrow.Terms memory terms = _terms(3, 2, 0, 0);
        _fund(terms);
        _settleRefused(terms, _result(3, 15, 0), 7, abi.encodeWithSelector(IJobEscrow.BadPayouts.selector, 4, 3));
        IJobEscrow.Result memory r = _result(3, 7 | 1 << 255, 0);
        _settleRefused(terms, r, 7, abi.encodeWithSelector(IJobEscrow.BadPayouts.selector, 256, 3));
    }

    function test_settle__signerThatDidNotWork__refuses() public {
        IJobEscrow.Terms memory terms = _terms(3, 2, 0, 0);
        _fund(terms);
        _settleRefused(terms, _result(3, 3, 0), 5, abi.encodeWithSelector(IJobEscrow.RewardWithoutWork.selector, 2));
    }

    function test_settle__oneSignerTwiceOrOutOfOrder__refuses() public {
        IJobEscrow.Terms memory terms = _terms(3, 2, 0, 0);
        _fund(terms);
        IJobEscrow.Result memory r = _result(3, 7, 0);
        (uint256[] memory signers, bytes[] memory signatures) = _attest(terms, r, 3);
        bytes memory refusal = abi.encodeWithSelector(IJobEscrow.BadSignature.selector, 1, address(0));
        (signers[0], signers[1], signatures[1]) = (0, 0, signatures[0]);
        vm.expectRevert(refusal);
        market.settle(terms, r, signers, signatures);
        (signers, signatures) = _attest(terms, r, 3);
        (signers[0], signers[1]) = (1, 0);
        (signatures[0], signatures[1]) = (signatures[1], signatures[0]);
        vm.expectRevert(refusal);
        market.settle(terms, r, signers, signatures);
    }

    function test_settle__signerBeyondTheList__refuses() public {
        IJobEscrow.Terms memory terms = _terms(2, 1, 0, 0);
        _fund(terms);
        IJobEscrow.Result memory r = _result(2, 3, 0);
        (, bytes[] memory signatures) = _attest(terms, r, 1);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.BadSignature.selector, 0, address(0)));
        market.settle(terms, r, _indices(4), signatures);
    }

    function _forged(IJobEscrow.Terms memory terms, IJobEscrow.Result memory r, bytes memory signature) private {
        bytes[] memory signatures = new bytes[](1);
        signatures[0] = signature;
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.BadSignature.selector, 0, terms.datasets[0].node));
        market.settle(terms, r, _indices(1), signatures);
    }

    function test_settle__attestationByAStranger__refuses() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        bytes32 jobId = _fund(terms);
        IJobEscrow.Result memory r = _result(1, 1, 0);
        _forged(terms, r, _sign(0xBAD, _attestation(jobId, r)));
        _forged(terms, r, _sign(keys[1], _attestation(jobId, r))); // a node, but not this job's
        _forged(terms, r, "");
    }

    function test_settle__attestationForAnotherJob__refuses() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        bytes32 first = _fund(terms);
        terms.specHash = keccak256("another spec");
        _fund(terms);
        IJobEscrow.Result memory r = _result(1, 1, 0);
        _forged(terms, r, _sign(keys[0], _attestation(first, r)));
    }

    function test_settle__attestationForAnotherChain__refuses() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        bytes32 jobId = _fund(terms);
        IJobEscrow.Result memory r = _result(1, 1, 0);
        _forged(terms, r, _signFor(keys[0], block.chainid + 1, address(market), _attestation(jobId, r)));
    }

    function test_settle__chainForkedToAnotherId__theJobIsUnknownThere() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        bytes32 here = _fund(terms);
        vm.chainId(block.chainid + 1);
        vm.assertTrue(market.hashTerms(terms) != here, "another id");
        _settleRefused(terms, _result(1, 1, 0), 1, _wrongStatus(terms, IJobEscrow.Status.None));
    }

    function test_settle__attestationForAnotherContract__refuses() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        bytes32 jobId = _fund(terms);
        IJobEscrow.Result memory r = _result(1, 1, 0);
        _forged(terms, r, _signFor(keys[0], block.chainid, address(registry), _attestation(jobId, r)));
    }

    function test_settle__anyFieldOfTheResultChanged__refuses() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 10, 0);
        bytes32 jobId = _fund(terms);
        bytes memory signature = _sign(keys[0], _attestation(jobId, _result(1, 1, 5)));
        IJobEscrow.Result memory r = _result(1, 1, 6);
        _forged(terms, r, signature);
        r = _result(1, 1, 5);
        r.modelHash = keccak256("another model");
        _forged(terms, r, signature);
        r = _result(1, 1, 5);
        r.reportHash = keccak256("another report");
        _forged(terms, r, signature);
    }

    function test_settle__aRejectionPassedAsAttestation__refuses() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        bytes32 jobId = _fund(terms);
        _forged(terms, _result(1, 1, 0), _sign(keys[0], _rejection(jobId, keccak256("no"))));
    }

    function test_settle__nodeIsAContractWallet__itsWordCounts() public {
        ContractWallet wallet = new ContractWallet(vm.addr(77));
        uint256 id = _list(address(wallet), 5, BPS);
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        terms.datasets[0] = _line(id);
        bytes32 jobId = _fund(terms);
        IJobEscrow.Result memory r = _result(1, 1, 0);
        _forged(terms, r, _sign(78, _attestation(jobId, r)));
        bytes[] memory signatures = new bytes[](1);
        signatures[0] = _sign(77, _attestation(jobId, r));
        market.settle(terms, r, _indices(1), signatures);
        vm.assertTrue(market.job(jobId).status == IJobEscrow.Status.Settled, "settled");
    }

    function test_settle__keyRotatedAfterFunding__theOldKeyStillCounts() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        bytes32 jobId = _fund(terms);
        vm.prank(HOSPITAL);
        registry.setNode(1, ANYONE);
        _settle(terms, _result(1, 1, 0), 1);
        vm.assertTrue(market.job(jobId).status == IJobEscrow.Status.Settled, "settled");
    }

    function test_settle__payoutListOfAnotherLength__refuses() public {
        IJobEscrow.Terms memory terms = _terms(2, 1, 0, 0);
        _fund(terms);
        _settleRefused(terms, _result(1, 1, 0), 1, abi.encodeWithSelector(IJobEscrow.BadPayouts.selector, 1, 2));
        _settleRefused(terms, _result(3, 3, 0), 1, abi.encodeWithSelector(IJobEscrow.BadPayouts.selector, 3, 2));
    }

    function test_settle__rewardForADatasetThatDidNotWork__refuses() public {
        IJobEscrow.Terms memory terms = _terms(2, 1, 10, 0);
        _fund(terms);
        IJobEscrow.Result memory r = _result(2, 1, 0);
        r.rewardUnits[1] = 1;
        _settleRefused(terms, r, 1, abi.encodeWithSelector(IJobEscrow.RewardWithoutWork.selector, 1));
    }

    function test_settle__rewardsAboveThePool__refuses() public {
        IJobEscrow.Terms memory terms = _terms(2, 1, 10, 0);
        _fund(terms);
        _settleRefused(
            terms, _result(2, 3, 6), 1, abi.encodeWithSelector(IJobEscrow.RewardsExceedPool.selector, 12, 10)
        );
        // the sum must not wrap around 96 bits either
        IJobEscrow.Result memory r = _result(2, 3, type(uint96).max);
        _settleRefused(
            terms,
            r,
            1,
            abi.encodeWithSelector(IJobEscrow.RewardsExceedPool.selector, 2 * uint256(type(uint96).max), 10)
        );
    }

    function test_settle__blocklistedBuyer__settlesAndTheChangeWaitsAsCredit() public {
        for (uint256 quiet = 0; quiet < 2; ++quiet) {
            IJobEscrow.Terms memory terms = _terms(2, 1, 100, 0);
            terms.specHash = bytes32(quiet);
            _fund(terms);
            money.setBlocked(BUYER, true);
            money.setQuiet(quiet == 1);
            _settle(terms, _result(2, 1, 40), 1);
            uint256 change = 2 * 1_000_003 + 60;
            vm.assertEq(market.credit(BUYER), change, "change waits");
            money.setBlocked(BUYER, false);
            vm.prank(BUYER);
            vm.assertEq(market.withdrawCredit(ANYONE), change, "taken out to another account");
            vm.assertEq(market.credit(BUYER), 0, "once");
        }
        vm.assertEq(money.balanceOf(ANYONE), 2 * (2 * 1_000_003 + 60), "arrived");
    }

    function test_settle__tokenCallsBackIntoTheMarket__refusesTheCall() public {
        CallbackToken token = new CallbackToken();
        market = new Market(registry, token, HUB, BOND);
        money = BlocklistToken(address(token));
        IJobEscrow.Terms memory terms = _terms(1, 1, 10, 0);
        _fund(terms);
        token.arm(address(market), abi.encodeCall(market.refund, (terms)));
        _settle(terms, _result(1, 1, 0), 1);
        vm.assertTrue(
            bytes4(token.answer()) == ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector, "locked"
        );
        vm.assertEq(money.balanceOf(BUYER), 10, "change, once");
    }

    function test_settle__sixtyFourDatasetsAllSigned__fitsInATransaction() public {
        delete keys;
        _open(address(money), 64);
        IJobEscrow.Terms memory terms = _terms(64, 43, 64_000, 0);
        _fund(terms);
        IJobEscrow.Result memory r = _result(64, type(uint64).max, 1_000);
        (uint256[] memory signers, bytes[] memory signatures) = _attest(terms, r, type(uint64).max);
        uint256 before = gasleft();
        market.settle(terms, r, signers, signatures);
        vm.assertLe(before - gasleft(), 10_000_000, "gas; a transaction may use 16.7 million (EIP-7825)");
    }

    function testFuzz_settle__anyWorkAndRewards__creditsPlusFeePlusChangeIsTheAmount(
        uint256 worked,
        uint96[3] memory rewards,
        uint96 pool,
        uint256 fee,
        uint8 vouchers
    ) public {
        pool = uint96(bound(pool, 0, type(uint96).max / 2));
        IJobEscrow.Terms memory terms = _terms(3, 1, pool, 0);
        for (uint256 i = 0; i < 3; ++i) {
            if (vouchers >> i & 1 == 1) (terms.datasets[i].voucher, terms.datasets[i].priceUnits) = (true, 0);
        }
        terms.feeUnits = uint96(bound(fee, 0, _amount(terms) / 20)); // below 5 % of the sum that includes it
        uint256 amount = _amount(terms);
        _fund(terms);
        IJobEscrow.Result memory r = _result(3, bound(worked, 1, 7), 0);
        uint256 left = pool;
        for (uint256 i = 0; i < 3; ++i) {
            if (r.worked >> i & 1 == 0) continue;
            r.rewardUnits[i] = uint96(bound(rewards[i], 0, left));
            left -= r.rewardUnits[i];
        }
        _settle(terms, r, r.worked);
        uint256 paid = 0;
        for (uint256 i = 0; i < 3; ++i) {
            uint256 earned = market.pool(i + 1).hospitalUnits + market.epoch(i + 1, 1).creditedUnits;
            bool didWork = r.worked >> i & 1 == 1;
            vm.assertEq(earned, didWork ? r.rewardUnits[i] + terms.datasets[i].priceUnits : 0, "earned");
            vm.assertEq(_datatoken(i + 1).balanceOf(BUYER), terms.datasets[i].voucher && !didWork ? ONE_JOB : 0, "voucher");
            vm.assertEq(_datatoken(i + 1).balanceOf(address(market)), 0, "no voucher stays");
            paid += earned;
        }
        vm.assertEq(paid + market.credit(HUB) + money.balanceOf(BUYER), amount, "no unit lost");
        vm.assertEq(money.balanceOf(address(market)), paid + market.credit(HUB), "all backed");
    }

    // ---- refund

    function test_refund__afterTheDeadline__givesBackEveryUnitAndVoucher() public {
        IJobEscrow.Terms memory terms = _terms(3, 2, 50, 5);
        terms.datasets[2].voucher = true;
        terms.datasets[2].priceUnits = 0;
        bytes32 jobId = _fund(terms);
        vm.warp(terms.deadline + 1);
        vm.prank(ANYONE);
        market.refund(terms);
        vm.assertTrue(market.job(jobId).status == IJobEscrow.Status.Refunded, "refunded");
        vm.assertEq(money.balanceOf(BUYER), _amount(terms), "units");
        vm.assertEq(_datatoken(3).balanceOf(BUYER), ONE_JOB, "voucher");
        vm.assertEq(market.credit(HUB), 0, "no fee without a settlement");
    }

    function test_refund__atTheDeadline__refuses() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        _fund(terms);
        vm.warp(terms.deadline);
        vm.expectRevert(
            abi.encodeWithSelector(IJobEscrow.DeadlineNotPassed.selector, terms.deadline, block.timestamp)
        );
        market.refund(terms);
    }

    function test_refund__afterASettlement__refuses() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        _fund(terms);
        _settle(terms, _result(1, 1, 0), 1);
        vm.warp(terms.deadline + 1);
        vm.expectRevert(_wrongStatus(terms, IJobEscrow.Status.Settled));
        market.refund(terms);
    }

    function test_refund__twice__refuses() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        _fund(terms);
        vm.warp(terms.deadline + 1);
        market.refund(terms);
        vm.expectRevert(_wrongStatus(terms, IJobEscrow.Status.Refunded));
        market.refund(terms);
    }

    function test_refund__blocklistedBuyer__refundsIntoCredit() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        _fund(terms);
        vm.warp(terms.deadline + 1);
        money.setBlocked(BUYER, true);
        market.refund(terms);
        vm.assertEq(market.credit(BUYER), 1_000_003, "credit");
    }

    // ---- refundRejected

    function _reject(IJobEscrow.Terms memory terms, uint256 who)
        private
        view
        returns (uint256[] memory signers, bytes32[] memory reasons, bytes[] memory signatures)
    {
        signers = _indices(who);
        reasons = new bytes32[](signers.length);
        signatures = new bytes[](signers.length);
        for (uint256 k = 0; k < signers.length; ++k) {
            reasons[k] = keccak256(abi.encode("epsilon left is too small", k));
            signatures[k] = _sign(keys[signers[k]], _rejection(market.hashTerms(terms), reasons[k]));
        }
    }

    function test_refundRejected__quorumOutOfReach__refundsBeforeTheDeadline() public {
        IJobEscrow.Terms memory terms = _terms(3, 2, 0, 0);
        bytes32 jobId = _fund(terms);
        (uint256[] memory s, bytes32[] memory reasons, bytes[] memory signatures) = _reject(terms, 5);
        vm.prank(ANYONE);
        market.refundRejected(terms, s, reasons, signatures);
        vm.assertTrue(market.job(jobId).status == IJobEscrow.Status.Refunded, "refunded");
        vm.assertEq(money.balanceOf(BUYER), _amount(terms), "units");
    }

    function test_refundRejected__quorumStillInReach__refuses() public {
        IJobEscrow.Terms memory terms = _terms(3, 2, 0, 0); // one refusal of three leaves two
        _fund(terms);
        (uint256[] memory s, bytes32[] memory reasons, bytes[] memory signatures) = _reject(terms, 2);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.QuorumNotMet.selector, 1, 2));
        market.refundRejected(terms, s, reasons, signatures);
    }

    function test_refundRejected__listsOfDifferentLength__refuses() public {
        IJobEscrow.Terms memory terms = _terms(3, 2, 0, 0);
        _fund(terms);
        (uint256[] memory s, bytes32[] memory reasons, bytes[] memory signatures) = _reject(terms, 3);
        bytes memory refusal = abi.encodeWithSelector(IJobEscrow.QuorumNotMet.selector, 1, 2);
        vm.expectRevert(refusal);
        market.refundRejected(terms, s, new bytes32[](1), signatures);
        vm.expectRevert(refusal);
        market.refundRejected(terms, s, reasons, new bytes[](1));
    }

    function test_refundRejected__oneRefusalTwice__refuses() public {
        IJobEscrow.Terms memory terms = _terms(3, 2, 0, 0);
        _fund(terms);
        (uint256[] memory s, bytes32[] memory reasons, bytes[] memory signatures) = _reject(terms, 3);
        (s[1], reasons[1], signatures[1]) = (s[0], reasons[0], signatures[0]);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.BadSignature.selector, 1, address(0)));
        market.refundRejected(terms, s, reasons, signatures);
    }

    function test_refundRejected__refusalForAnotherReasonOrByAStranger__refuses() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        bytes32 jobId = _fund(terms);
        (uint256[] memory s, bytes32[] memory reasons, bytes[] memory signatures) = _reject(terms, 1);
        bytes memory refusal = abi.encodeWithSelector(IJobEscrow.BadSignature.selector, 0, terms.datasets[0].node);
        vm.expectRevert(refusal);
        market.refundRejected(terms, s, new bytes32[](1), signatures);
        signatures[0] = _sign(0xBAD, _rejection(jobId, reasons[0]));
        vm.expectRevert(refusal);
        market.refundRejected(terms, s, reasons, signatures);
    }

    function test_refundRejected__afterASettlement__refuses() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        _fund(terms);
        _settle(terms, _result(1, 1, 0), 1);
        (uint256[] memory s, bytes32[] memory reasons, bytes[] memory signatures) = _reject(terms, 1);
        vm.expectRevert(_wrongStatus(terms, IJobEscrow.Status.Settled));
        market.refundRejected(terms, s, reasons, signatures);
    }

    function testFuzz_refundRejected__anyRefusals__endsTheJobExactlyWhenTheQuorumIsOutOfReach(uint256 who, uint256 q)
        public
    {
        IJobEscrow.Terms memory terms = _terms(3, uint16(bound(q, 1, 3)), 0, 0);
        bytes32 jobId = _fund(terms);
        (uint256[] memory s, bytes32[] memory reasons, bytes[] memory signatures) = _reject(terms, bound(who, 0, 7));
        bool outOfReach = 3 - s.length < terms.quorum;
        if (!outOfReach) {
            vm.expectRevert(abi.encodeWithSelector(IJobEscrow.QuorumNotMet.selector, s.length, 4 - terms.quorum));
        }
        market.refundRejected(terms, s, reasons, signatures);
        vm.assertTrue(
            market.job(jobId).status == (outOfReach ? IJobEscrow.Status.Refunded : IJobEscrow.Status.Funded), "status"
        );
    }

    // ---- credit

    function test_withdrawCredit__hubTakesItsFee__once() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 100);
        _fund(terms);
        _settle(terms, _result(1, 1, 0), 1);
        vm.prank(HUB);
        vm.assertEq(market.withdrawCredit(HUB), 100, "fee");
        vm.assertEq(money.balanceOf(HUB), 100, "arrived");
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.NothingToWithdraw.selector, HUB));
        vm.prank(HUB);
        market.withdrawCredit(HUB);
    }

    function test_market__constants__areWhatThePageSays() public view {
        vm.assertEq(market.MAX_FEE_BPS(), 500, "5 %");
        vm.assertTrue(market.feeRecipient() == HUB, "hub");
        vm.assertTrue(address(market.registry()) == address(registry), "registry");
        vm.assertTrue(address(market.paymentToken()) == address(money), "token");
        vm.assertLe(address(market).code.length, 24_576, "EIP-170");
    }
}
