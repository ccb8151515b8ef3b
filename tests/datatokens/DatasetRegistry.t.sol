// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {TestUSD} from "@bank/dev/TestUSD.sol";
import {Datatoken} from "@bank/Datatoken.sol";
import {IDatasetRegistry} from "@bank/interfaces/IDatasetRegistry.sol";
import {Bank} from "./Bank.sol";
import {BlocklistToken} from "./Tokens.sol";
import {vm} from "./Vm.sol";

contract DatasetRegistryTest is Bank {
    address private constant ANYONE = address(0xCAFE);
    address private constant NODE = address(0x90DE);

    function setUp() public {
        _open(address(new BlocklistToken()), 2);
    }

    function _notOwner() private pure returns (bytes memory) {
        return abi.encodeWithSelector(IDatasetRegistry.NotDatasetOwner.selector, 1, ANYONE);
    }

    function test_listDataset__everythingInOrder__isOwnedAndReadable() public {
        vm.prank(ANYONE);
        (uint256 id, address datatoken) = registry.listDataset(NODE, 12, 10_000, bytes32("m"), "uri", "HEART");
        vm.assertEq(id, 3, "ids count from 1");
        vm.assertEq(registry.datasetCount(), 3, "count");
        vm.assertTrue(registry.ownerOf(3) == ANYONE, "owner");
        IDatasetRegistry.Dataset memory d = registry.dataset(3);
        vm.assertTrue(d.datatoken == datatoken && d.node == NODE && d.manifestHash == bytes32("m"), "fields");
        vm.assertEq(d.priceUnits, 12, "price");
        vm.assertEq(d.contributorBps, 10_000, "bps");
        Datatoken token = Datatoken(datatoken);
        vm.assertTrue(keccak256(bytes(token.symbol())) == keccak256("HEART"), "symbol");
        vm.assertTrue(keccak256(bytes(token.name())) == keccak256("Datatoken 3"), "name");
        vm.assertEq(token.datasetId(), 3, "clone knows its dataset");
        vm.assertEq(token.decimals(), 18, "decimals");
        vm.assertEq(token.totalSupply(), 0, "none minted");
    }

    function test_listDataset__zeroNodeKey__refuses() public {
        vm.expectRevert(abi.encodeWithSelector(IDatasetRegistry.ZeroNodeKey.selector));
        registry.listDataset(address(0), 1, 0, bytes32(0), "", "");
    }

    function test_listDataset__moreThanAllForContributors__refuses() public {
        vm.expectRevert(abi.encodeWithSelector(IDatasetRegistry.BadContributorBps.selector, 10_001));
        registry.listDataset(NODE, 1, 10_001, bytes32(0), "", "");
    }

    function test_dataset__unknownId__refuses() public {
        bytes memory refusal = abi.encodeWithSelector(IDatasetRegistry.UnknownDataset.selector, 3);
        vm.expectRevert(refusal);
        registry.dataset(3);
        vm.expectRevert(refusal);
        registry.setPrice(3, 1);
        vm.expectRevert(refusal);
        registry.mintDatatokens(3, ANYONE, 1);
    }

    function test_setPrice__owner__changesIt() public {
        vm.prank(HOSPITAL);
        registry.setPrice(1, 5);
        vm.assertEq(registry.dataset(1).priceUnits, 5, "price");
    }

    function test_setManifest__owner__changesIt() public {
        vm.prank(HOSPITAL);
        registry.setManifest(1, bytes32("new"), "uri");
        vm.assertTrue(registry.dataset(1).manifestHash == bytes32("new"), "manifest");
    }

    function test_setNode__owner__rotatesTheKey() public {
        vm.prank(HOSPITAL);
        registry.setNode(1, NODE);
        vm.assertTrue(registry.dataset(1).node == NODE, "node");
        vm.expectRevert(abi.encodeWithSelector(IDatasetRegistry.ZeroNodeKey.selector));
        vm.prank(HOSPITAL);
        registry.setNode(1, address(0));
    }

    function test_setters__stranger__refuse() public {
        vm.expectRevert(_notOwner());
        vm.prank(ANYONE);
        registry.setPrice(1, 5);
        vm.expectRevert(_notOwner());
        vm.prank(ANYONE);
        registry.setManifest(1, bytes32(0), "");
        vm.expectRevert(_notOwner());
        vm.prank(ANYONE);
        registry.setNode(1, NODE);
    }

    function test_transferFrom__datasetSold__theNewOwnerRules() public {
        vm.prank(HOSPITAL);
        registry.transferFrom(HOSPITAL, ANYONE, 1);
        vm.prank(ANYONE);
        registry.setPrice(1, 5);
        vm.expectRevert(abi.encodeWithSelector(IDatasetRegistry.NotDatasetOwner.selector, 1, HOSPITAL));
        vm.prank(HOSPITAL);
        registry.setPrice(1, 6);
    }

    function test_mintDatatokens__ownerAndMarketOnly__mint() public {
        vm.prank(HOSPITAL);
        registry.mintDatatokens(1, ANYONE, 7);
        vm.prank(address(market));
        registry.mintDatatokens(1, ANYONE, 1);
        vm.assertEq(_datatoken(1).balanceOf(ANYONE), 8, "minted");
        vm.assertEq(_datatoken(2).totalSupply(), 0, "of this dataset only");
        vm.expectRevert(abi.encodeWithSelector(IDatasetRegistry.NotMinter.selector, 1, ANYONE));
        vm.prank(ANYONE);
        registry.mintDatatokens(1, ANYONE, 1);
    }

    function test_allowMarket__guardianOnly__firstIsTheDefault() public {
        vm.expectRevert(abi.encodeWithSelector(IDatasetRegistry.NotGuardian.selector, address(this), ANYONE));
        vm.prank(ANYONE);
        registry.allowMarket(ANYONE, true);
        vm.assertTrue(registry.market() == address(market), "default");
        registry.allowMarket(address(market), false);
        vm.expectRevert(abi.encodeWithSelector(IDatasetRegistry.NotMinter.selector, 1, address(market)));
        vm.prank(address(market));
        registry.mintDatatokens(1, ANYONE, 1);
    }

    function test_setStorefront__onceByTheGuardian() public {
        registry.setStorefront(ANYONE);
        vm.expectRevert(abi.encodeWithSelector(IDatasetRegistry.StorefrontAlreadySet.selector, ANYONE));
        registry.setStorefront(HOSPITAL);
    }

    function test_mintDatatokens__priceZero__theMarketCannotGiveForNothing() public {
        vm.prank(HOSPITAL);
        registry.setPrice(1, 0);
        vm.expectRevert(abi.encodeWithSelector(IDatasetRegistry.NotForSale.selector, 1, 0));
        vm.prank(address(market));
        registry.mintDatatokens(1, ANYONE, 1e18);
    }

    function test_roles__datasetTransferred__areGone() public {
        vm.prank(HOSPITAL);
        registry.setRoles(1, ANYONE, 1);
        vm.prank(ANYONE);
        registry.setPrice(1, 9);
        vm.prank(HOSPITAL);
        registry.transferFrom(HOSPITAL, BUYER, 1);
        vm.assertEq(registry.rolesOf(1, ANYONE), 0, "wiped");
        vm.expectRevert(_notOwner());
        vm.prank(ANYONE);
        registry.setPrice(1, 5);
        vm.prank(BUYER);
        registry.transferFrom(BUYER, HOSPITAL, 1);
        vm.assertEq(registry.rolesOf(1, ANYONE), 0, "nor do they come back");
    }

    function test_setPrice__publisher__refusesButManifestWorks() public {
        vm.prank(HOSPITAL);
        registry.setRoles(1, ANYONE, 2);
        vm.prank(ANYONE);
        registry.setManifest(1, bytes32("n"), "uri");
        vm.assertEq(registry.standing(1).version, 2, "version");
        vm.expectRevert(abi.encodeWithSelector(IDatasetRegistry.RoleMissing.selector, 1, ANYONE, 1));
        vm.prank(ANYONE);
        registry.setPrice(1, 5);
    }

    function test_setState__retired__isFinalAndMintsNothing() public {
        vm.prank(HOSPITAL);
        registry.setState(1, IDatasetRegistry.State.Retired);
        vm.expectRevert(abi.encodeWithSelector(IDatasetRegistry.RetiredIsFinal.selector, 1));
        vm.prank(HOSPITAL);
        registry.setState(1, IDatasetRegistry.State.Active);
        vm.expectRevert(abi.encodeWithSelector(IDatasetRegistry.NotActive.selector, 1, 2));
        vm.prank(HOSPITAL);
        registry.mintDatatokens(1, ANYONE, 1);
        vm.assertTrue(!registry.mayConsume(1, ANYONE), "consume");
    }

    function test_setPrivacyBudget__raised__refuses() public {
        vm.prank(HOSPITAL);
        registry.setPrivacyBudget(1, 2_000_000, 1e12);
        vm.expectRevert(abi.encodeWithSelector(IDatasetRegistry.BudgetMayOnlyFall.selector, 1, 2_000_000, 1e12));
        vm.prank(HOSPITAL);
        registry.setPrivacyBudget(1, 2_000_001, 1e11);
    }

    function test_datatokenMint__notTheRegistry__refuses() public {
        Datatoken token = _datatoken(1);
        vm.expectRevert(abi.encodeWithSelector(Datatoken.OnlyRegistry.selector, HOSPITAL));
        vm.prank(HOSPITAL);
        token.mint(HOSPITAL, 1);
    }

    function test_datatoken__burnFrom__takesTheBalanceAndTheAllowance() public {
        Datatoken token = _datatoken(1);
        vm.prank(HOSPITAL);
        registry.mintDatatokens(1, ANYONE, 5);
        vm.prank(ANYONE);
        token.approve(NODE, 2);
        vm.prank(NODE);
        token.burnFrom(ANYONE, 2);
        vm.assertEq(token.balanceOf(ANYONE), 3, "burned");
        vm.assertEq(token.totalSupply(), 3, "in all");
        vm.expectRevert();
        vm.prank(NODE);
        token.burnFrom(ANYONE, 1);
    }

    function test_datatokenBurn__takesFromTheCallerOnly() public {
        vm.prank(HOSPITAL);
        registry.mintDatatokens(1, ANYONE, 5);
        Datatoken token = _datatoken(1);
        vm.prank(ANYONE);
        token.burn(2);
        vm.assertEq(token.balanceOf(ANYONE), 3, "burned");
        vm.expectRevert();
        vm.prank(HOSPITAL);
        token.burn(1);
    }

    function test_datatokenTemplate__isNoDataset() public {
        Datatoken template = Datatoken(registry.datatokenTemplate());
        vm.expectRevert();
        template.datasetId();
    }

    function test_testUsdMint__notTheDeployer__refuses() public {
        TestUSD usd = new TestUSD();
        usd.mint(ANYONE, 5);
        vm.assertEq(usd.balanceOf(ANYONE), 5, "minted");
        vm.assertEq(usd.decimals(), 6, "like a stablecoin");
        vm.expectRevert(abi.encodeWithSelector(TestUSD.OnlyMinter.selector, ANYONE));
        vm.prank(ANYONE);
        usd.mint(ANYONE, 5);
    }
}
