// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC721Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {Market} from "@bank/Market.sol";
import {SumTree} from "@bank/SumTree.sol";
import {UnexpectedAmountReceived} from "@bank/RevenuePools.sol";
import {IDatasetRegistry} from "@bank/interfaces/IDatasetRegistry.sol";
import {IJobEscrow} from "@bank/interfaces/IJobEscrow.sol";
import {IRevenuePools} from "@bank/interfaces/IRevenuePools.sol";
import {Bank} from "./Bank.sol";
import {BlocklistToken, ContractWallet, FeeOnTransferToken} from "./Tokens.sol";
import {bound, vm} from "./Vm.sol";

contract RevenuePoolsTest is Bank {
    address private constant ANYONE = address(0xCAFE);
    address private constant ANNA = address(0xA22A);
    address private constant BEN = address(0xBE22);
    uint64 private constant ANNAS = 3;
    uint64 private constant BENS = 1;

    function setUp() public {
        _open(address(new BlocklistToken()), 2);
        vm.prank(HOSPITAL);
        registry.setPrice(1, 1_000); // 300 to the contributors, 700 to the hospital
    }

    function _buy(uint256 count) private {
        uint256 price = uint256(registry.dataset(1).priceUnits) * count;
        money.mint(BUYER, price);
        vm.prank(BUYER);
        money.approve(address(market), price);
        vm.prank(BUYER);
        market.buyDatatokens(1, count);
    }

    /// @dev Anna's and Ben's list for an epoch of dataset 1, posted by the hospital.
    function _post(uint64 epoch, uint64 annas, uint64 bens) private returns (bytes32 root) {
        root = _pair(_leaf(1, epoch, ANNA, annas), _leaf(1, epoch, BEN, bens));
        _postRoot(1, root);
    }

    function _postRoot(uint256 id, bytes32 root) private {
        vm.prank(HOSPITAL);
        market.postContributors(id, root, "ipfs://tree");
    }

    /// @dev The same, live.
    function _live(uint64 epoch, uint64 annas, uint64 bens) private {
        _post(epoch, annas, bens);
        _activate(1);
    }

    function _activate(uint256 id) private {
        if (market.pendingContributors(id).root == 0) return;
        vm.warp(vm.getBlockTimestamp() + 3 days);
        market.activateContributors(id);
    }

    function _anna(uint64 epoch, uint64 annas, uint64 bens) private pure returns (IRevenuePools.Claim[] memory) {
        return _one(1, epoch, annas, _proof(_leaf(1, epoch, BEN, bens)));
    }

    function _claimAnna(uint64 epoch, uint64 annas, uint64 bens) private returns (uint256) {
        return market.claimOnBehalf(ANNA, _anna(epoch, annas, bens));
    }

    function _claimBen(uint64 epoch, uint64 annas, uint64 bens) private returns (uint256) {
        return market.claimOnBehalf(BEN, _one(1, epoch, bens, _proof(_leaf(1, epoch, ANNA, annas))));
    }

    function _fundDisputer(address who) private {
        money.mint(who, BOND);
        vm.prank(who);
        money.approve(address(market), BOND);
    }

    /// @dev A pending list of dataset 1 after revenue, and `who`'s dispute about it.
    function _dispute(address who) private returns (bytes32 root) {
        _buy(1);
        root = _post(1, ANNAS, BENS);
        _fundDisputer(who);
        vm.prank(who);
        market.disputeContributors(1, root);
    }

    // ---- buyDatatokens and withdrawHospital

    function test_buyDatatokens__twoJobs__mintsVouchersAndSplitsThePrice() public {
        _buy(2);
        vm.assertEq(_datatoken(1).balanceOf(BUYER), 2 * ONE_JOB, "vouchers");
        vm.assertEq(market.pool(1).hospitalUnits, 1_400, "hospital");
        vm.assertEq(market.epoch(1, 1).creditedUnits, 600, "contributors");
        vm.assertEq(money.balanceOf(address(market)), 2_000, "held");
    }

    function test_buyDatatokens__unknownDataset__refuses() public {
        vm.expectRevert(abi.encodeWithSelector(IDatasetRegistry.UnknownDataset.selector, 9));
        market.buyDatatokens(9, 1);
    }

    function test_buyDatatokens__feeOnTransferToken__refuses() public {
        FeeOnTransferToken token = new FeeOnTransferToken();
        market = new Market(registry, token, HUB, GUARDIAN, BOND);
        token.mint(ANYONE, 1_000);
        vm.prank(ANYONE);
        token.approve(address(market), 1_000);
        vm.expectRevert(abi.encodeWithSelector(UnexpectedAmountReceived.selector, 990, 1_000));
        vm.prank(ANYONE);
        market.buyDatatokens(1, 1);
    }

    function test_buyDatatokens__aPriceThatNoPoolCanHold__refuses() public {
        vm.prank(HOSPITAL);
        registry.setPrice(1, type(uint96).max);
        uint256 count = 1 << 40;
        uint256 price = count * type(uint96).max;
        money.mint(ANYONE, price);
        vm.prank(ANYONE);
        money.approve(address(market), price);
        vm.expectRevert(
            abi.encodeWithSelector(SafeCast.SafeCastOverflowedUintDowncast.selector, 96, price - price * 3 / 10)
        );
        vm.prank(ANYONE);
        market.buyDatatokens(1, count);
    }

    function test_withdrawHospital__ownerOnly__once() public {
        _buy(1);
        vm.expectRevert(abi.encodeWithSelector(IDatasetRegistry.NotDatasetOwner.selector, 1, ANYONE));
        vm.prank(ANYONE);
        market.withdrawHospital(1, ANYONE);
        vm.prank(HOSPITAL);
        vm.assertEq(market.withdrawHospital(1, ANYONE), 700, "hospital's part");
        vm.assertEq(money.balanceOf(ANYONE), 700, "arrived");
        vm.assertEq(market.pool(1).hospitalUnits, 700, "the register stays");
        vm.assertEq(market.withdrawn(1), 700, "what left is noted");
        vm.assertEq(market.epoch(1, 1).creditedUnits, 300, "the contributors' part is untouched");
        _buy(2);
        vm.prank(HOSPITAL);
        vm.assertEq(market.withdrawHospital(1, ANYONE), 1_400, "only the new part");
    }

    function test_withdrawHospital__nothingThere__refuses() public {
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.NothingToWithdraw.selector, HOSPITAL));
        vm.prank(HOSPITAL);
        market.withdrawHospital(1, HOSPITAL);
        _buy(1);
        vm.prank(HOSPITAL);
        market.withdrawHospital(1, HOSPITAL);
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.NothingToWithdraw.selector, HOSPITAL));
        vm.prank(HOSPITAL);
        market.withdrawHospital(1, HOSPITAL);
    }

    function test_withdrawHospital__unknownDataset__refuses() public {
        vm.expectRevert(abi.encodeWithSelector(IERC721Errors.ERC721NonexistentToken.selector, 9));
        market.withdrawHospital(9, ANYONE);
    }

    // ---- payRevenue

    function test_payRevenue__anyone__isSplitAsAJobIs() public {
        money.mint(ANYONE, 11);
        vm.prank(ANYONE);
        money.approve(address(market), 11);
        vm.prank(ANYONE);
        market.payRevenue(1, 11);
        vm.assertEq(market.pool(1).contributorUnits, 3, "rounded down");
        vm.assertEq(market.pool(1).hospitalUnits, 8, "the rest");
        vm.assertEq(money.balanceOf(address(market)), 11, "held");
    }

    function test_payRevenue__nothingUnknownDatasetOrNoMoney__refuses() public {
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.NothingPaid.selector, 1));
        market.payRevenue(1, 0);
        vm.expectRevert(abi.encodeWithSelector(IDatasetRegistry.UnknownDataset.selector, 9));
        market.payRevenue(9, 1);
        vm.expectRevert();
        vm.prank(ANYONE);
        market.payRevenue(1, 1);
    }

    function test_payRevenue__feeOnTransferToken__refuses() public {
        FeeOnTransferToken token = new FeeOnTransferToken();
        market = new Market(registry, token, HUB, GUARDIAN, BOND);
        token.mint(ANYONE, 1_000);
        vm.prank(ANYONE);
        token.approve(address(market), 1_000);
        vm.expectRevert(abi.encodeWithSelector(UnexpectedAmountReceived.selector, 990, 1_000));
        vm.prank(ANYONE);
        market.payRevenue(1, 1_000);
    }

    // ---- postContributors and activateContributors

    function test_pool__untouched__hasNoLiveList() public view {
        vm.assertEq(market.pool(2).epoch, 0, "epoch");
    }

    function test_postContributors__firstAndNothingEarned__isLiveAtOnce() public {
        bytes32 root = _post(1, ANNAS, BENS);
        vm.assertEq(market.pool(1).epoch, 1, "live");
        vm.assertTrue(market.epoch(1, 1).root == root, "root");
        vm.assertEq(market.epoch(1, 1).totalWeight, ANNAS + BENS, "the root says the total");
        vm.assertTrue(market.pendingContributors(1).root == 0, "nothing waits");
        _buy(1);
        vm.assertEq(market.claimable(1, 1, ANNA, ANNAS), 225, "three quarters of 300");
    }

    function test_postContributors__firstAfterRevenue__waitsAndThenGetsAllOfIt() public {
        _buy(1);
        _post(1, ANNAS, BENS);
        vm.assertEq(market.pool(1).epoch, 0, "not yet");
        vm.assertEq(market.claimable(1, 1, ANNA, ANNAS), 0, "nothing to claim by a list that waits");
        vm.assertEq(uint256(market.epoch(1, 1).root), 0, "no root before it is live");
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.NothingToClaim.selector, ANNA));
        _claimAnna(1, ANNAS, BENS);
        vm.warp(vm.getBlockTimestamp() + 3 days - 1);
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.DisputeWindowOpen.selector, 1, block.timestamp + 1));
        market.activateContributors(1);
        vm.warp(vm.getBlockTimestamp() + 1);
        market.activateContributors(1);
        vm.assertEq(market.claimable(1, 1, ANNA, ANNAS), 225, "three quarters of 300");
        _buy(1);
        vm.assertEq(market.epoch(1, 1).creditedUnits, 600, "later revenue too");
    }

    function test_activateContributors__laterList__changesNobodysEarlierShare() public {
        _live(1, ANNAS, BENS);
        _buy(1);
        _post(2, 1, 9);
        _buy(1);
        vm.assertEq(market.claimable(1, 1, ANNA, ANNAS), 450, "the last list serves while the next one waits");
        vm.assertEq(market.claimable(1, 2, ANNA, 1), 0, "and the next one does not serve yet");
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.NothingToClaim.selector, ANNA));
        _claimAnna(2, 1, 9);
        _activate(1);
        vm.assertEq(market.pool(1).epoch, 2, "next epoch");
        vm.assertEq(market.claimable(1, 1, ANNA, ANNAS), 450, "old share by old weight");
        _buy(1);
        vm.assertEq(market.claimable(1, 1, ANNA, ANNAS), 450, "and it stays so");
        vm.assertEq(market.claimable(1, 2, ANNA, 1), 30, "new share by new weight");
        vm.assertEq(_claimAnna(1, ANNAS, BENS), 450, "old epoch stays claimable");
        vm.assertEq(_claimAnna(2, 1, 9), 30, "new one too");
    }

    function test_postContributors__again__replacesAndStartsTheWindowAnew() public {
        _live(1, ANNAS, BENS);
        _post(2, 1, 9);
        uint256 again = vm.getBlockTimestamp() + 3 days - 1;
        vm.warp(again);
        bytes32 root = _post(2, 9, 1);
        vm.warp(again + 1);
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.DisputeWindowOpen.selector, 1, again + 3 days));
        market.activateContributors(1);
        _activate(1);
        vm.assertTrue(market.epoch(1, 2).root == root, "the later one");
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.NothingPending.selector, 1));
        market.activateContributors(1);
    }

    function test_postContributors__strangerOrZeroWeight__refuses() public {
        vm.expectRevert(abi.encodeWithSelector(IDatasetRegistry.NotDatasetOwner.selector, 1, ANYONE));
        vm.prank(ANYONE);
        market.postContributors(1, bytes32("root"), "");
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.ZeroWeight.selector));
        vm.prank(HOSPITAL);
        market.postContributors(1, _node(keccak256("root"), 0), "");
    }

    // ---- disputes

    function test_disputeContributors__takesTheBondAndFreezesTheList() public {
        bytes32 root = _dispute(ANYONE);
        vm.assertEq(money.balanceOf(ANYONE), 0, "bond taken");
        vm.assertTrue(market.pendingContributors(1).disputer == ANYONE, "noted");
        vm.warp(vm.getBlockTimestamp() + 10 days);
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.AlreadyInDispute.selector, 1));
        market.activateContributors(1);
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.AlreadyInDispute.selector, 1));
        vm.prank(HOSPITAL);
        market.postContributors(1, bytes32(uint256(7)), "");
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.AlreadyInDispute.selector, 1));
        market.disputeContributors(1, root);
    }

    function test_disputeContributors__afterTheWindowOrWithoutAList__refuses() public {
        bytes32 root = _post(1, ANNAS, BENS);
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.NothingPending.selector, 1));
        market.disputeContributors(1, root);
        root = _post(2, ANNAS, BENS);
        vm.warp(vm.getBlockTimestamp() + 3 days);
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.DisputeWindowClosed.selector, 1, block.timestamp));
        market.disputeContributors(1, root);
    }

    /// @dev The owner sees the dispute coming and swaps the list for an honest one: the bond must not be caught.
    function test_disputeContributors__ownerSwapsTheListFirst__takesNoBond() public {
        _buy(1);
        bytes32 bad = _post(1, 1_000, BENS);
        _fundDisputer(ANYONE);
        bytes32 good = _post(1, ANNAS, BENS);
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.AnotherRootPending.selector, 1, bad, good));
        vm.prank(ANYONE);
        market.disputeContributors(1, bad);
        vm.assertEq(money.balanceOf(ANYONE), BOND, "kept");
    }

    function test_ruleDispute__upheld__dropsTheListAndGivesTheBondBack() public {
        bytes32 root = _dispute(ANYONE);
        vm.prank(GUARDIAN);
        market.ruleDispute(1, root, true);
        vm.assertEq(money.balanceOf(ANYONE), BOND, "bond");
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.NothingPending.selector, 1));
        market.activateContributors(1);
        vm.assertEq(market.pool(1).contributorUnits, 300, "the contributors' money waits for an honest list");
        vm.assertTrue(market.pendingContributors(1).root == 0, "dropped");
        _post(1, 1, 1);
        vm.assertTrue(market.pendingContributors(1).disputer == address(0), "nobody disputes the next one");
        _activate(1);
        vm.assertEq(_claimAnna(1, 1, 1), 150, "and comes with it");
    }

    function test_ruleDispute__notUpheld__paysTheHospitalAndTheListMayGoLive() public {
        bytes32 root = _dispute(ANYONE);
        vm.prank(GUARDIAN);
        market.ruleDispute(1, root, false);
        vm.assertEq(market.pool(1).hospitalUnits, 700 + BOND, "the bond is the hospital's");
        vm.assertEq(market.pool(1).contributorUnits, 300, "not split");
        vm.assertTrue(market.pendingContributors(1).disputer == address(0), "out of dispute");
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.DisputeWindowOpen.selector, 1, block.timestamp + 3 days));
        market.activateContributors(1);
        _activate(1);
        vm.assertEq(_claimAnna(1, ANNAS, BENS), 225, "live");
        vm.prank(HOSPITAL);
        vm.assertEq(market.withdrawHospital(1, HOSPITAL), 700 + BOND, "and can be taken");
    }

    function test_ruleDispute__strangerOtherRootOrNoDispute__refuses() public {
        bytes32 root = _dispute(ANYONE);
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.NotArbiter.selector, GUARDIAN, HOSPITAL));
        vm.prank(HOSPITAL);
        market.ruleDispute(1, root, false);
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.AnotherRootPending.selector, 1, bytes32("x"), root));
        vm.prank(GUARDIAN);
        market.ruleDispute(1, bytes32("x"), true);
        vm.prank(GUARDIAN);
        market.ruleDispute(1, root, true);
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.NotInDispute.selector, 1));
        vm.prank(GUARDIAN);
        market.ruleDispute(1, root, true);
    }

    function test_expireDispute__arbiterSilent__anyoneDropsTheListAndTheBondGoesBack() public {
        _dispute(ANYONE);
        vm.warp(vm.getBlockTimestamp() + 14 days - 1);
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.ArbiterHasTime.selector, 1, block.timestamp + 1));
        market.expireDispute(1);
        vm.warp(vm.getBlockTimestamp() + 1);
        market.expireDispute(1);
        vm.assertEq(money.balanceOf(ANYONE), BOND, "bond");
        vm.assertTrue(market.pendingContributors(1).root == 0, "dropped");
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.NotInDispute.selector, 1));
        market.expireDispute(1);
    }

    function test_ruleDispute__disputerOnTheBlocklist__isNotHeldUpAndTheBondWaitsAsCredit() public {
        bytes32 root = _dispute(ANYONE);
        money.setBlocked(ANYONE, true);
        vm.prank(GUARDIAN);
        market.ruleDispute(1, root, true);
        vm.assertEq(market.credit(ANYONE), BOND, "credit");
        root = _post(1, ANNAS, BENS);
        money.setBlocked(ANYONE, false);
        _fundDisputer(ANYONE);
        vm.prank(ANYONE);
        market.disputeContributors(1, root);
        money.setBlocked(ANYONE, true);
        money.setQuiet(true);
        vm.warp(vm.getBlockTimestamp() + 14 days);
        market.expireDispute(1);
        vm.assertEq(market.credit(ANYONE), 2 * BOND, "and again");
    }

    // ---- claim

    function test_claimOnBehalf__anyoneSubmits__theMoneyGoesToTheAccount() public {
        _post(1, ANNAS, BENS);
        _buy(1);
        vm.prank(ANYONE);
        vm.assertEq(market.claimOnBehalf(ANNA, _anna(1, ANNAS, BENS)), 225, "units");
        vm.assertEq(money.balanceOf(ANNA), 225, "arrived");
        vm.assertEq(market.claimed(1, 1, ANNA), 225, "noted");
        vm.assertEq(market.epoch(1, 1).claimedUnits, 225, "and summed");
    }

    function test_claim__ownShare__goesWhereTheAccountSays() public {
        _post(1, ANNAS, BENS);
        _buy(1);
        vm.prank(ANNA);
        vm.assertEq(market.claim(_anna(1, ANNAS, BENS), ANYONE), 225, "units");
        vm.assertEq(money.balanceOf(ANYONE), 225, "arrived");
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.BadProof.selector, 1, 1, ANYONE, ANNAS));
        vm.prank(ANYONE);
        market.claim(_anna(1, ANNAS, BENS), ANYONE);
    }

    function test_claim__twice__refusesUntilThereIsMore() public {
        _post(1, ANNAS, BENS);
        _buy(1);
        _claimAnna(1, ANNAS, BENS);
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.NothingToClaim.selector, ANNA));
        _claimAnna(1, ANNAS, BENS);
        _buy(1);
        vm.assertEq(_claimAnna(1, ANNAS, BENS), 225, "only the new part");
    }

    function test_claim__manyDatasetsAndEpochs__isOnePaymentAndEmptyOnesArePassedOver() public {
        _post(1, ANNAS, BENS);
        _buy(1);
        _live(2, 1, 9);
        _buy(1);
        _postRoot(2, _leaf(2, 1, ANNA, 7)); // a list of one: its root is its leaf
        IRevenuePools.Claim[] memory claims = new IRevenuePools.Claim[](4);
        claims[0] = _anna(1, ANNAS, BENS)[0];
        claims[1] = _anna(2, 1, 9)[0];
        claims[2] = claims[0]; // the same once more pays nothing more
        claims[3] = IRevenuePools.Claim(2, 1, 7, new bytes32[](0)); // nothing earned there
        vm.prank(ANNA);
        vm.assertEq(market.claim(claims, BEN), 225 + 30, "sum");
        vm.assertEq(money.balanceOf(BEN), 225 + 30, "arrived");
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.NothingToClaim.selector, ANNA));
        vm.prank(ANNA);
        market.claim(claims, BEN);
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.NothingToClaim.selector, ANNA));
        vm.prank(ANNA);
        market.claim(new IRevenuePools.Claim[](0), BEN);
    }

    function test_claim__withSomeoneElsesProof__refuses() public {
        _post(1, ANNAS, BENS);
        _buy(1);
        bytes32[] memory proof = _proof(_leaf(1, 1, BEN, BENS));
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.BadProof.selector, 1, 1, ANYONE, ANNAS));
        market.claimOnBehalf(ANYONE, _one(1, 1, ANNAS, proof));
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.BadProof.selector, 1, 1, ANNA, ANNAS + 1));
        market.claimOnBehalf(ANNA, _one(1, 1, ANNAS + 1, proof));
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.BadProof.selector, 1, 1, BEN, BENS));
        market.claimOnBehalf(BEN, _one(1, 1, BENS, proof));
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.ZeroWeight.selector));
        market.claimOnBehalf(ANNA, _one(1, 1, 0, proof));
    }

    function test_claim__proofOfAnotherDatasetOrEpoch__refuses() public {
        bytes32 root = _post(1, ANNAS, BENS); // the same list posted where its leaves do not belong
        _postRoot(2, root);
        _postRoot(1, root);
        _activate(1);
        bytes32[] memory proof = _proof(_leaf(1, 1, BEN, BENS));
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.BadProof.selector, 2, 1, ANNA, ANNAS));
        market.claimOnBehalf(ANNA, _one(2, 1, ANNAS, proof));
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.BadProof.selector, 1, 2, ANNA, ANNAS));
        market.claimOnBehalf(ANNA, _one(1, 2, ANNAS, proof));
    }

    function test_claim__noListLive__refuses() public {
        _buy(1);
        vm.assertEq(market.claimable(1, 1, ANNA, ANNAS), 0, "nothing");
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.NoContributors.selector, 1, 1));
        _claimAnna(1, ANNAS, BENS);
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.NoContributors.selector, 1, 0));
        _claimAnna(0, ANNAS, BENS);
    }

    // ---- forged trees: whatever the owner posts, weights that can be proved never sum to more than the root's

    function test_claim__rootThatSaysLessThanItsLeaves__provesNothing() public {
        bytes32 honest = _pair(_leaf(1, 1, ANNA, 3), _leaf(1, 1, BEN, 3));
        _postRoot(1, _node(honest, 4)); // the right hash, a lie about the sum
        _buy(1);
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.BadProof.selector, 1, 1, ANNA, 3));
        _claimAnna(1, 3, 3);
    }

    function test_claim__innerNodeThatSaysLessThanItsLeaves__shutsOutOnlyItsOwn() public {
        bytes32 pair = _pair(_leaf(1, 1, ANNA, 30), _leaf(1, 1, BEN, 30));
        bytes32 lie = _node(pair, 1);
        bytes32 other = _leaf(1, 1, ANYONE, 3);
        _postRoot(1, _pair(lie, other)); // total 4 over 63 of leaves
        _buy(1);
        bytes32[] memory proof = new bytes32[](2);
        (proof[0], proof[1]) = (_leaf(1, 1, BEN, 30), other);
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.BadProof.selector, 1, 1, ANNA, 30));
        market.claimOnBehalf(ANNA, _one(1, 1, 30, proof));
        vm.assertEq(market.claimOnBehalf(ANYONE, _one(1, 1, 3, _proof(lie))), 225, "three of four");
    }

    function test_claim__siblingWhoseWeightOverflowsTheSum__refuses() public {
        bytes32 a = _leaf(1, 1, ANNA, 3);
        bytes32 b = _leaf(1, 1, BEN, type(uint64).max);
        _postRoot(1, _node(keccak256(a < b ? abi.encode(a, b) : abi.encode(b, a)), 2)); // 3 + 2**64 - 1, wrapped
        _buy(1);
        vm.expectRevert(abi.encodeWithSelector(SumTree.WeightsOverflow.selector, uint256(type(uint64).max) + 3));
        market.claimOnBehalf(ANNA, _one(1, 1, 3, _proof(b)));
    }

    function test_claim__accountOnTheListTwice__getsItsLargestWeightOnly() public {
        bytes32 a = _leaf(1, 1, ANNA, 3);
        bytes32 b = _leaf(1, 1, ANNA, 1);
        _postRoot(1, _pair(a, b));
        _buy(1);
        vm.assertEq(market.claimOnBehalf(ANNA, _one(1, 1, 1, _proof(a))), 75, "one quarter");
        vm.assertEq(market.claimOnBehalf(ANNA, _one(1, 1, 3, _proof(b))), 150, "up to three");
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.NothingToClaim.selector, ANNA));
        market.claimOnBehalf(ANNA, _one(1, 1, 1, _proof(a)));
    }

    function test_claim__innerNodePassedOffAsALeaf__refuses() public {
        bytes32 a = _leaf(1, 1, ANNA, 3);
        bytes32 b = _leaf(1, 1, BEN, 1);
        bytes32 pair = _pair(a, b);
        _postRoot(1, _pair(pair, _leaf(1, 1, ANYONE, 4)));
        _buy(1);
        // the proof one step too short or too long, and the pair's whole weight
        bytes32[] memory proof = new bytes32[](3);
        (proof[0], proof[1], proof[2]) = (b, _leaf(1, 1, ANYONE, 4), pair);
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.BadProof.selector, 1, 1, ANNA, 3));
        market.claimOnBehalf(ANNA, _one(1, 1, 3, proof));
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.BadProof.selector, 1, 1, ANNA, 3));
        market.claimOnBehalf(ANNA, _one(1, 1, 3, _proof(b)));
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.BadProof.selector, 1, 1, ANNA, 4));
        market.claimOnBehalf(ANNA, _one(1, 1, 4, _proof(_leaf(1, 1, ANYONE, 4))));
    }

    function test_claim__largestWeightsAndCredits__doNotOverflow() public {
        uint64 most = type(uint64).max - 1;
        vm.prank(HOSPITAL);
        registry.setPrice(1, type(uint96).max);
        _post(1, most, 1);
        _buy(1);
        uint256 credited = market.epoch(1, 1).creditedUnits;
        vm.assertEq(_claimAnna(1, most, 1), credited * most / (uint256(most) + 1), "its part");
        vm.assertEq(_claimBen(1, most, 1), credited / (uint256(most) + 1), "and Ben his");
    }

    // ---- claimFor

    uint256 private constant CARLAS_KEY = 0xCA21A;

    /// @dev By hand, so a slip in the contract's own hashing cannot hide.
    function _claimTo(address account, IRevenuePools.Claim[] memory claims, address to, uint256 nonce, uint256 deadline)
        private
        pure
        returns (bytes32)
    {
        bytes memory shares;
        for (uint256 i = 0; i < claims.length; ++i) {
            bytes32 kind = keccak256("Share(uint256 datasetId,uint64 epoch,uint64 weight)");
            shares = abi.encodePacked(
                shares, keccak256(abi.encode(kind, claims[i].datasetId, claims[i].epoch, claims[i].weight))
            );
        }
        bytes32 claimTo = keccak256(
            "ClaimTo(address account,address to,uint256 nonce,uint256 deadline,Share[] shares)Share(uint256 datasetId,uint64 epoch,uint64 weight)"
        );
        return keccak256(abi.encode(claimTo, account, to, nonce, deadline, keccak256(shares)));
    }

    /// @dev Carla (or a wallet of hers) alone on the lists of both datasets, and both have earned.
    function _carlas(address account) private returns (IRevenuePools.Claim[] memory claims) {
        claims = new IRevenuePools.Claim[](2);
        for (uint256 i = 0; i < 2; ++i) {
            _postRoot(i + 1, _leaf(i + 1, 1, account, 7));
            claims[i] = IRevenuePools.Claim(i + 1, 1, 7, new bytes32[](0));
        }
        _buy(1);
    }

    function test_claimFor__signedByTheAccount__paysWhereItSaidAndOnlyOnce() public {
        address carla = vm.addr(CARLAS_KEY);
        IRevenuePools.Claim[] memory claims = _carlas(carla);
        uint256 deadline = vm.getBlockTimestamp();
        bytes memory signature = _sign(CARLAS_KEY, _claimTo(carla, claims, BEN, 0, deadline));
        vm.prank(ANYONE);
        vm.assertEq(market.claimFor(carla, claims, BEN, deadline, signature), 300, "units");
        vm.assertEq(money.balanceOf(BEN), 300, "arrived");
        vm.assertEq(market.claimNonce(carla), 1, "spent");
        _buy(1);
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.BadClaimSignature.selector, carla, 1));
        market.claimFor(carla, claims, BEN, deadline, signature);
        vm.warp(deadline + 1);
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.ClaimExpired.selector, deadline, deadline + 1));
        market.claimFor(carla, claims, BEN, deadline, signature);
    }

    function test_claimFor__anythingChanged__refuses() public {
        address carla = vm.addr(CARLAS_KEY);
        IRevenuePools.Claim[] memory claims = _carlas(carla);
        uint256 deadline = block.timestamp + 1;
        bytes memory signature = _sign(CARLAS_KEY, _claimTo(carla, claims, BEN, 0, deadline));
        bytes memory refusal = abi.encodeWithSelector(IRevenuePools.BadClaimSignature.selector, carla, 0);
        vm.expectRevert(refusal);
        market.claimFor(carla, claims, ANYONE, deadline, signature);
        vm.expectRevert(refusal);
        market.claimFor(carla, claims, BEN, deadline + 1, signature);
        IRevenuePools.Claim[] memory fewer = _one(1, 1, 7, new bytes32[](0));
        vm.expectRevert(refusal);
        market.claimFor(carla, fewer, BEN, deadline, signature);
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.BadClaimSignature.selector, ANNA, 0));
        market.claimFor(ANNA, claims, BEN, deadline, signature);
        bytes memory elsewhere = _signFor(CARLAS_KEY, block.chainid + 1, address(market), _claimTo(carla, claims, BEN, 0, deadline));
        vm.expectRevert(refusal);
        market.claimFor(carla, claims, BEN, deadline, elsewhere);
        bytes memory early = _sign(CARLAS_KEY, _claimTo(carla, claims, BEN, 1, deadline));
        vm.expectRevert(refusal);
        market.claimFor(carla, claims, BEN, deadline, early);
        vm.assertEq(market.claimFor(carla, claims, BEN, deadline, signature), 300, "unchanged, it is good");
    }

    function test_claimFor__contractWallet__speaksByErc1271() public {
        address wallet = address(new ContractWallet(vm.addr(CARLAS_KEY)));
        IRevenuePools.Claim[] memory claims = _carlas(wallet);
        bytes memory signature = _sign(CARLAS_KEY, _claimTo(wallet, claims, BEN, 0, block.timestamp));
        vm.assertEq(market.claimFor(wallet, claims, BEN, block.timestamp, signature), 300, "units");
        bytes memory forged = _sign(CARLAS_KEY + 1, _claimTo(wallet, claims, BEN, 1, block.timestamp));
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.BadClaimSignature.selector, wallet, 1));
        market.claimFor(wallet, claims, BEN, block.timestamp, forged);
    }

    // ---- over everything

    function testFuzz_buyDatatokens__anyPriceAndBps__theSplitLosesNoUnit(uint96 price, uint16 bps, uint256 count)
        public
    {
        bps = uint16(bound(bps, 0, 10_000));
        count = bound(count, 1, 1_000);
        price = uint96(bound(price / 1_000, 1, type(uint96).max)); // what a register can hold; at 0 nothing is sold
        uint256 id = _list(ANYONE, price, bps);
        uint256 paid = count * price;
        money.mint(BUYER, paid);
        vm.prank(BUYER);
        money.approve(address(market), paid);
        vm.prank(BUYER);
        market.buyDatatokens(id, count);
        vm.assertEq(market.epoch(id, 1).creditedUnits, paid * bps / 10_000, "contributors, rounded down");
        vm.assertEq(market.pool(id).hospitalUnits + market.epoch(id, 1).creditedUnits, paid, "no unit lost");
    }

    function testFuzz_claim__anyWeightsInAnyOrder__eachGetsItsShareAndOnlyDustStays(
        uint64 annas,
        uint64 bens,
        uint96[3] memory prices,
        uint8 order
    ) public {
        annas = uint64(bound(annas, 1, type(uint64).max - 1));
        bens = uint64(bound(bens, 1, type(uint64).max - annas));
        _post(1, annas, bens);
        for (uint256 i = 0; i < 3; ++i) {
            vm.prank(HOSPITAL);
            prices[i] = uint96(bound(prices[i] / 4, 1, type(uint96).max)); // three of them fit into a register
            registry.setPrice(1, prices[i]);
            _buy(1);
            if (order >> (2 * i) & 1 == 1 && market.claimable(1, 1, ANNA, annas) > 0) _claimAnna(1, annas, bens);
            if (order >> (2 * i + 1) & 1 == 1 && market.claimable(1, 1, BEN, bens) > 0) _claimBen(1, annas, bens);
        }
        if (market.claimable(1, 1, ANNA, annas) > 0) _claimAnna(1, annas, bens);
        if (market.claimable(1, 1, BEN, bens) > 0) _claimBen(1, annas, bens);
        uint256 credited = market.epoch(1, 1).creditedUnits;
        uint256 paid = money.balanceOf(ANNA) + money.balanceOf(BEN);
        vm.assertEq(paid, market.epoch(1, 1).claimedUnits, "paid is what was noted");
        vm.assertLe(paid, credited, "never more than was earned");
        vm.assertLe(credited - paid, 1, "of two, at most one unit of dust stays");
        // claiming early or late, often or once, makes no difference: the share is of the sum
        vm.assertTrue(
            money.balanceOf(ANNA) == market.claimed(1, 1, ANNA) && market.claimable(1, 1, ANNA, annas) == 0, "whole share"
        );
        _checkFloor(credited, annas, uint256(annas) + bens, money.balanceOf(ANNA));
        _checkFloor(credited, bens, uint256(annas) + bens, money.balanceOf(BEN));
    }

    /// @dev share = floor(credited * weight / total) as share * total <= credited * weight < (share + 1) * total,
    ///      in numbers below 2**161.
    function _checkFloor(uint256 credited, uint256 weight, uint256 total, uint256 share) private pure {
        vm.assertLe(share * total, credited * weight, "not more than the share");
        vm.assertLe(credited * weight + 1, (share + 1) * total, "not less either");
    }
}

/// @dev Two datasets, four people, lists that come, go, lie and are disputed: what a fuzzer may do, in plain sums.
contract Earners is Bank {
    uint256 private constant DATASETS = 2;
    uint256 private constant PEOPLE = 4;
    address private constant DISPUTER = address(0xD15);

    mapping(uint256 id => mapping(uint64 epoch => uint64[PEOPLE])) private _weights;
    mapping(uint256 id => mapping(uint64 epoch => bytes32[2])) private _inner; // above people 0 1 and above 2 3
    mapping(uint256 id => mapping(uint64 epoch => mapping(uint256 person => uint256))) public received;
    mapping(uint256 id => mapping(uint64 epoch => uint256)) public closedAt; // what a past epoch had earned at its end
    mapping(uint256 id => IRevenuePools.Pool) private _seen;
    mapping(uint256 id => uint256) public withdrawals;
    mapping(bytes32 action => uint256) public done;
    bool public fellBack; // a register that shrank

    constructor() {
        _open(address(new BlocklistToken()), DATASETS);
        money.mint(BUYER, type(uint96).max);
        money.mint(DISPUTER, type(uint96).max);
        vm.prank(BUYER);
        money.approve(address(market), type(uint256).max);
        vm.prank(DISPUTER);
        money.approve(address(market), type(uint256).max);
    }

    function bank() external view returns (Market, BlocklistToken) {
        return (market, money);
    }

    function weightOf(uint256 id, uint64 epoch, uint256 person) external view returns (uint64) {
        return _weights[id][epoch][person];
    }

    function personAt(uint256 person) public pure returns (address) {
        return address(uint160(0xC0FFEE00 + person));
    }

    modifier watched() {
        _;
        for (uint256 id = 1; id <= DATASETS; ++id) {
            IRevenuePools.Pool memory p = market.pool(id);
            IRevenuePools.Pool memory was = _seen[id];
            if (p.hospitalUnits < was.hospitalUnits || p.contributorUnits < was.contributorUnits || p.epoch < was.epoch) {
                fellBack = true;
            }
            _seen[id] = p;
        }
    }

    function pay(uint256 id, uint64 units) external watched {
        vm.prank(BUYER);
        market.payRevenue(bound(id, 1, DATASETS), uint256(units) + 1);
        ++done["pay"];
    }

    /// @dev kind 2: the root says half of the truth; kind 3: so does the node above people 0 and 1.
    function post(uint256 id, uint56[PEOPLE] memory weights, uint256 kind) external watched {
        id = bound(id, 1, DATASETS);
        kind = bound(kind, 0, 3);
        if (market.pendingContributors(id).disputedAt != 0) return;
        uint64 epoch = market.pool(id).epoch + 1;
        bytes32[PEOPLE] memory leaves;
        for (uint256 i = 0; i < PEOPLE; ++i) {
            _weights[id][epoch][i] = uint64(weights[i]) + 1;
            leaves[i] = _leaf(id, epoch, personAt(i), uint64(weights[i]) + 1);
        }
        bytes32 left = _pair(leaves[0], leaves[1]);
        if (kind == 3) left = _node(left, _weight(left) / 2);
        _inner[id][epoch] = [left, _pair(leaves[2], leaves[3])];
        bytes32 root = _pair(_inner[id][epoch][0], _inner[id][epoch][1]);
        if (kind == 2) root = _node(root, _weight(root) / 2);
        vm.prank(HOSPITAL);
        market.postContributors(id, root, "");
        ++done["post"];
    }

    function activate(uint256 id, bool wait) external watched {
        id = bound(id, 1, DATASETS);
        if (wait) vm.warp(vm.getBlockTimestamp() + 3 days);
        uint64 last = market.pool(id).epoch;
        uint256 earned = market.epoch(id, last).creditedUnits;
        try market.activateContributors(id) {
            closedAt[id][last] = earned;
            ++done["activate"];
        } catch {
            ++done["activate refused"];
        }
    }

    function dispute(uint256 id) external watched {
        id = bound(id, 1, DATASETS);
        bytes32 root = market.pendingContributors(id).root;
        vm.prank(DISPUTER);
        try market.disputeContributors(id, root) {
            ++done["dispute"];
        } catch {
            ++done["dispute refused"];
        }
    }

    function rule(uint256 id, bool upheld) external watched {
        id = bound(id, 1, DATASETS);
        bytes32 root = market.pendingContributors(id).root;
        vm.prank(GUARDIAN);
        try market.ruleDispute(id, root, upheld) {
            ++done["rule"];
        } catch {
            ++done["rule refused"];
        }
    }

    function expire(uint256 id, bool wait) external watched {
        if (wait) vm.warp(vm.getBlockTimestamp() + 14 days);
        try market.expireDispute(bound(id, 1, DATASETS)) {
            ++done["expire"];
        } catch {
            ++done["expire refused"];
        }
    }

    function block_(bool yes, bool quiet) external {
        money.setBlocked(DISPUTER, yes);
        money.setQuiet(quiet);
    }

    /// @dev Any epoch, past, live or to come; twice in one transaction where `greedy`.
    function claim(uint256 id, uint64 epoch, uint256 person, bool greedy) external watched {
        id = bound(id, 1, DATASETS);
        epoch = uint64(bound(epoch, 1, uint256(market.pool(id).epoch) + 1));
        person = bound(person, 0, PEOPLE - 1);
        bytes32[] memory proof = new bytes32[](2);
        uint256 sibling = person ^ 1;
        proof[0] = _leaf(id, epoch, personAt(sibling), _weights[id][epoch][sibling]);
        proof[1] = _inner[id][epoch][person < 2 ? 1 : 0];
        IRevenuePools.Claim[] memory claims = new IRevenuePools.Claim[](greedy ? 2 : 1);
        for (uint256 i = 0; i < claims.length; ++i) {
            claims[i] = IRevenuePools.Claim(id, epoch, _weights[id][epoch][person], proof);
        }
        try market.claimOnBehalf(personAt(person), claims) returns (uint256 units) {
            received[id][epoch][person] += units;
            ++done["claim"];
        } catch {
            ++done["claim refused"];
        }
    }

    function withdraw(uint256 id) external watched {
        id = bound(id, 1, DATASETS);
        vm.prank(HOSPITAL);
        try market.withdrawHospital(id, HOSPITAL) returns (uint256 units) {
            withdrawals[id] += units;
            ++done["withdraw"];
        } catch {
            ++done["withdraw refused"];
        }
    }

    function bondsAndCredit() external view returns (uint256 units) {
        units = market.credit(DISPUTER);
        for (uint256 id = 1; id <= DATASETS; ++id) {
            if (market.pendingContributors(id).disputedAt != 0) units += BOND;
        }
    }
}

contract RevenuePoolsInvariants {
    Earners private _earners;
    Market private _market;
    BlocklistToken private _money;

    function setUp() public {
        _earners = new Earners();
        (_market, _money) = _earners.bank();
    }

    function targetContracts() external view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(_earners);
    }

    /// @dev (1) Per account: what was paid is what was noted, and at most the weight's part of the epoch. A claim that
    ///      forgets to note what it paid breaks this one, though the epoch's cap may still hold.
    function invariant_nobodyClaimsTwice() public view {
        for (uint256 id = 1; id <= 2; ++id) {
            for (uint64 epoch = 1; epoch <= _market.pool(id).epoch; ++epoch) {
                IRevenuePools.Epoch memory e = _market.epoch(id, epoch);
                for (uint256 person = 0; person < 4; ++person) {
                    uint256 got = _earners.received(id, epoch, person);
                    vm.assertEq(_market.claimed(id, epoch, _earners.personAt(person)), got, "noted is what was paid");
                    uint256 most = e.creditedUnits * _earners.weightOf(id, epoch, person);
                    vm.assertLe(got * e.totalWeight, most, "share");
                }
            }
        }
    }

    /// @dev (2) Per epoch: the claims sum to what is noted and never exceed what it earned.
    function invariant_claimsNeverExceedTheEpoch() public view {
        for (uint256 id = 1; id <= 2; ++id) {
            uint256 credited = 0;
            for (uint64 epoch = 1; epoch <= _market.pool(id).epoch || epoch == 1; ++epoch) {
                IRevenuePools.Epoch memory e = _market.epoch(id, epoch);
                uint256 sum = 0;
                for (uint256 person = 0; person < 4; ++person) {
                    sum += _earners.received(id, epoch, person);
                }
                vm.assertEq(e.claimedUnits, sum, "noted is the sum");
                vm.assertLe(sum, e.creditedUnits, "cap");
                credited += e.creditedUnits;
            }
            vm.assertEq(credited, _market.pool(id).contributorUnits, "every unit belongs to one epoch");
        }
    }

    /// @dev (3) An epoch that has ended keeps what it had earned: no later list changes an earlier share.
    function invariant_pastEpochsStayAsTheyEnded() public view {
        for (uint256 id = 1; id <= 2; ++id) {
            for (uint64 epoch = 1; epoch < _market.pool(id).epoch; ++epoch) {
                vm.assertEq(_market.epoch(id, epoch).creditedUnits, _earners.closedAt(id, epoch), "closed");
            }
        }
    }

    /// @dev (4) The hospital never takes more than its register, and no register ever shrinks.
    function invariant_registersOnlyGrow() public view {
        vm.assertTrue(!_earners.fellBack(), "monotone");
        for (uint256 id = 1; id <= 2; ++id) {
            vm.assertEq(_market.withdrawn(id), _earners.withdrawals(id), "noted is what was paid");
            vm.assertLe(_market.withdrawn(id), _market.pool(id).hospitalUnits, "hospital");
        }
    }

    /// @dev (5) The market holds what it owes, bonds included: no unit less, and none more.
    function invariant_balanceIsAllThatIsOwed() public view {
        uint256 owed = _earners.bondsAndCredit();
        for (uint256 id = 1; id <= 2; ++id) {
            IRevenuePools.Pool memory p = _market.pool(id);
            owed += p.hospitalUnits - _market.withdrawn(id) + p.contributorUnits;
            for (uint64 epoch = 1; epoch <= p.epoch; ++epoch) {
                owed -= _market.epoch(id, epoch).claimedUnits;
            }
        }
        vm.assertEq(_money.balanceOf(address(_market)), owed, "balance");
    }

    /// @dev They can really do everything: without this the invariants could hold because nothing ever happens.
    function test_earners__scripted__everyActionSucceedsAndIsRefusedOnce() public {
        uint56[4] memory weights = [uint56(4), 3, 2, 1];
        _earners.post(1, weights, 0);
        _earners.pay(1, 9_999);
        for (uint256 person = 0; person < 4; ++person) {
            _earners.claim(1, 1, person, true);
            _earners.claim(1, 1, person, false);
        }
        _earners.post(1, weights, 3);
        _earners.dispute(1);
        _earners.dispute(1);
        _earners.activate(1, true);
        _earners.rule(1, false);
        _earners.rule(1, false);
        _earners.activate(1, true);
        _earners.pay(1, 9_999);
        _earners.claim(1, 2, 0, false); // below the lie
        _earners.claim(1, 2, 2, false); // beside it
        _earners.block_(true, true);
        _earners.post(1, weights, 2);
        _earners.dispute(1);
        _earners.expire(1, false);
        _earners.expire(1, true);
        _earners.withdraw(1);
        _earners.withdraw(1);
        bytes32[14] memory actions = [
            bytes32("pay"), "post", "activate", "activate refused", "dispute", "dispute refused", "rule",
            "rule refused", "expire", "expire refused", "claim", "claim refused", "withdraw", "withdraw refused"
        ];
        for (uint256 i = 0; i < actions.length; ++i) {
            vm.assertTrue(_earners.done(actions[i]) > 0, string(abi.encodePacked(actions[i])));
        }
        vm.assertTrue(_earners.bondsAndCredit() == 5_000, "the bond waits as credit");
        vm.assertTrue(_earners.received(1, 2, 2) > 0 && _earners.received(1, 2, 0) == 0, "the lie shut out its own");
        invariant_nobodyClaimsTwice();
        invariant_claimsNeverExceedTheEpoch();
        invariant_pastEpochsStayAsTheyEnded();
        invariant_registersOnlyGrow();
        invariant_balanceIsAllThatIsOwed();
    }
}
