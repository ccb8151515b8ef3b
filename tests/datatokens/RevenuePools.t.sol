// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {Market} from "@bank/Market.sol";
import {UnexpectedAmountReceived} from "@bank/RevenuePools.sol";
import {IDatasetRegistry} from "@bank/interfaces/IDatasetRegistry.sol";
import {IRevenuePools} from "@bank/interfaces/IRevenuePools.sol";
import {Bank} from "./Bank.sol";
import {BlocklistToken, FeeOnTransferToken} from "./Tokens.sol";
import {bound, vm} from "./Vm.sol";

contract RevenuePoolsTest is Bank {
    address private constant ANYONE = address(0xCAFE);
    address private constant ANNA = address(0xA22A);
    address private constant BEN = address(0xBE22);
    uint128 private constant ANNAS = 3;
    uint128 private constant BENS = 1;

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

    /// @dev Anna's and Ben's tree for an epoch of dataset 1, posted by the hospital.
    function _post(uint64 epoch, uint128 annas, uint128 bens) private {
        bytes32 root = _pair(_leaf(1, epoch, ANNA, annas), _leaf(1, epoch, BEN, bens));
        vm.prank(HOSPITAL);
        market.postContributors(1, root, annas + bens, "ipfs://tree");
    }

    function _claimAnna(uint64 epoch, uint128 annas, uint128 bens) private returns (uint256) {
        return market.claim(1, epoch, ANNA, annas, _proof(_leaf(1, epoch, BEN, bens)));
    }

    function _claimBen(uint64 epoch, uint128 annas, uint128 bens) private returns (uint256) {
        return market.claim(1, epoch, BEN, bens, _proof(_leaf(1, epoch, ANNA, annas)));
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
        market = new Market(registry, token, HUB);
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
            abi.encodeWithSelector(SafeCast.SafeCastOverflowedUintDowncast.selector, 128, price - price * 3 / 10)
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
        vm.prank(HOSPITAL);
        vm.assertEq(market.withdrawHospital(1, ANYONE), 0, "nothing left");
        vm.assertEq(money.balanceOf(ANYONE), 700, "arrived");
        vm.assertEq(market.epoch(1, 1).creditedUnits, 300, "the contributors' part is untouched");
    }

    function test_withdrawHospital__unknownDataset__refuses() public {
        vm.expectRevert(abi.encodeWithSelector(IDatasetRegistry.UnknownDataset.selector, 9));
        market.withdrawHospital(9, ANYONE);
    }

    // ---- postContributors

    function test_pool__untouched__isInEpochOne() public view {
        vm.assertEq(market.pool(2).epoch, 1, "epoch");
    }

    function test_postContributors__firstPost__isForTheOpenEpochAndWhatItEarned() public {
        _buy(1);
        _post(1, ANNAS, BENS);
        vm.assertEq(market.pool(1).epoch, 1, "still open");
        vm.assertEq(market.claimable(1, 1, ANNA, ANNAS), 225, "three quarters of 300");
        _buy(1);
        vm.assertEq(market.epoch(1, 1).creditedUnits, 600, "later revenue too");
    }

    function test_postContributors__laterPost__changesNobodysEarlierShare() public {
        _post(1, ANNAS, BENS);
        _buy(1);
        _post(2, 1, 9);
        vm.assertEq(market.pool(1).epoch, 2, "next epoch");
        _buy(1);
        vm.assertEq(market.claimable(1, 1, ANNA, ANNAS), 225, "old share by old weight");
        vm.assertEq(market.claimable(1, 2, ANNA, 1), 30, "new share by new weight");
        vm.assertEq(_claimAnna(1, ANNAS, BENS), 225, "old epoch stays claimable");
        vm.assertEq(_claimAnna(2, 1, 9), 30, "new one too");
    }

    function test_postContributors__strangerOrZeroWeight__refuses() public {
        vm.expectRevert(abi.encodeWithSelector(IDatasetRegistry.NotDatasetOwner.selector, 1, ANYONE));
        vm.prank(ANYONE);
        market.postContributors(1, bytes32("root"), 1, "");
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.ZeroWeight.selector));
        vm.prank(HOSPITAL);
        market.postContributors(1, bytes32("root"), 0, "");
    }

    // ---- claim

    function test_claim__anyoneSubmits__theMoneyGoesToTheAccount() public {
        _post(1, ANNAS, BENS);
        _buy(1);
        bytes32[] memory proof = _proof(_leaf(1, 1, BEN, BENS));
        vm.prank(ANYONE);
        vm.assertEq(market.claim(1, 1, ANNA, ANNAS, proof), 225, "units");
        vm.assertEq(money.balanceOf(ANNA), 225, "arrived");
        vm.assertEq(market.claimed(1, 1, ANNA), 225, "noted");
        vm.assertEq(market.epoch(1, 1).claimedUnits, 225, "and summed");
    }

    function test_claim__twice__refusesUntilThereIsMore() public {
        _post(1, ANNAS, BENS);
        _buy(1);
        _claimAnna(1, ANNAS, BENS);
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.NothingToClaim.selector, 1, 1, ANNA));
        _claimAnna(1, ANNAS, BENS);
        _buy(1);
        vm.assertEq(_claimAnna(1, ANNAS, BENS), 225, "only the new part");
    }

    function test_claim__withSomeoneElsesProof__refuses() public {
        _post(1, ANNAS, BENS);
        _buy(1);
        bytes32[] memory proof = _proof(_leaf(1, 1, BEN, BENS));
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.BadProof.selector, 1, 1, ANYONE, ANNAS));
        market.claim(1, 1, ANYONE, ANNAS, proof);
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.BadProof.selector, 1, 1, ANNA, ANNAS + 1));
        market.claim(1, 1, ANNA, ANNAS + 1, proof);
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.BadProof.selector, 1, 1, BEN, BENS));
        market.claim(1, 1, BEN, BENS, proof);
    }

    function test_claim__proofOfAnotherDatasetOrEpoch__refuses() public {
        _post(1, ANNAS, BENS);
        bytes32 root = market.epoch(1, 1).root; // the same tree posted where its leaves do not belong
        vm.prank(HOSPITAL);
        market.postContributors(2, root, ANNAS + BENS, "");
        vm.prank(HOSPITAL);
        market.postContributors(1, root, ANNAS + BENS, "");
        bytes32[] memory proof = _proof(_leaf(1, 1, BEN, BENS));
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.BadProof.selector, 2, 1, ANNA, ANNAS));
        market.claim(2, 1, ANNA, ANNAS, proof);
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.BadProof.selector, 1, 2, ANNA, ANNAS));
        market.claim(1, 2, ANNA, ANNAS, proof);
    }

    function test_claim__noTreePosted__refuses() public {
        _buy(1);
        vm.assertEq(market.claimable(1, 1, ANNA, ANNAS), 0, "nothing");
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.NoContributors.selector, 1, 1));
        _claimAnna(1, ANNAS, BENS);
    }

    function test_claim__treeThatPromisesMoreThanItsTotal__isCappedByTheCredits() public {
        _buy(1);
        bytes32 root = _pair(_leaf(1, 1, ANNA, 3), _leaf(1, 1, BEN, 3));
        vm.prank(HOSPITAL);
        market.postContributors(1, root, 4, ""); // a lie: the weights sum to 6
        vm.assertEq(_claimAnna(1, 3, 3), 225, "first come");
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.ClaimsExceedCredits.selector, 1, 1));
        _claimBen(1, 3, 3);
        vm.assertEq(money.balanceOf(address(market)), 700 + 75, "the hospital's part is safe");
    }

    function test_claim__largestWeightsAndCredits__doNotOverflow() public {
        uint128 most = type(uint128).max - 1;
        vm.prank(HOSPITAL);
        registry.setPrice(1, type(uint96).max);
        _post(1, most, 1);
        _buy(1_000_000);
        uint256 credited = market.epoch(1, 1).creditedUnits;
        vm.assertEq(_claimAnna(1, most, 1), credited - 1, "all but what one of 2**128 parts rounds to");
    }

    /// @dev Root and proofs as datatokens/merkle.py makes them (test_merkle.py has the same tree), the odd leaf included.
    function test_claim__treeMadeInPython__isAccepted() public {
        _buy(1);
        vm.prank(HOSPITAL);
        market.postContributors(1, 0x7de9816ab56be6d6e2c01f07418b97f232c5efe42f6823c3dc8ce1b239fa9ab2, 15, "");
        bytes32[] memory proof = new bytes32[](3);
        proof[0] = 0x4681e8bc4fce712f5f8f73332cd4e2876dcb4590edcc2c89c4f33e3a5c13eab4;
        proof[1] = 0x71068daa7301cc55f9556707990e7891dde93dc92771b9e8cc8e8dcf8e2811e1;
        proof[2] = 0xd8494e95610d8bec7eb4a020894a6d410c612ca2193719038335a2279f12c5b1;
        vm.assertEq(market.claim(1, 1, address(0xC0FFEE01), 2, proof), 40, "2 of 15 parts of 300");
        vm.assertEq(market.claim(1, 1, address(0xC0FFEE04), 5, _proof(0x14b290b3dc83b6b905521473bf4511179119b9045ed4b07263cec6b35d235ecc)), 100, "5 of 15 parts");
    }

    function testFuzz_buyDatatokens__anyPriceAndBps__theSplitLosesNoUnit(uint96 price, uint16 bps, uint256 count)
        public
    {
        bps = uint16(bound(bps, 0, 10_000));
        count = bound(count, 1, 1_000);
        price = uint96(bound(price, 1, type(uint96).max)); // at 0 nothing is sold
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
        uint128 annas,
        uint128 bens,
        uint96[3] memory prices,
        uint8 order
    ) public {
        annas = uint128(bound(annas, 1, type(uint128).max - 1));
        bens = uint128(bound(bens, 1, type(uint128).max - annas));
        _post(1, annas, bens);
        for (uint256 i = 0; i < 3; ++i) {
            vm.prank(HOSPITAL);
            prices[i] = uint96(bound(prices[i], 1, type(uint96).max));
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
    ///      in numbers below 2**232.
    function _checkFloor(uint256 credited, uint256 weight, uint256 total, uint256 share) private pure {
        vm.assertLe(share * total, credited * weight, "not more than the share");
        vm.assertLe(credited * weight + 1, (share + 1) * total, "not less either");
    }
}
