// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IDatasetRegistry} from "@bank/interfaces/IDatasetRegistry.sol";
import {Bank} from "./Bank.sol";
import {BlocklistToken} from "./Tokens.sol";
import {vm} from "./Vm.sol";

/// @dev A market that may change what it takes.
contract Till {
    address public paymentToken;

    function take(address token) external {
        paymentToken = token;
    }
}

/// @dev Who may call what on a dataset, every function and every kind of caller; and what each call leaves behind.
contract DatasetAccessTest is Bank {
    address private constant STRANGER = address(0xCAFE);
    address private constant MANAGER = address(0x3A4A);
    address private constant PUBLISHER = address(0x9B11);

    function setUp() public {
        _open(address(new BlocklistToken()), 1);
        vm.prank(HOSPITAL);
        registry.setRoles(1, MANAGER, 1);
        vm.prank(HOSPITAL);
        registry.setRoles(1, PUBLISHER, 2);
        vm.prank(HOSPITAL);
        registry.addTier(1, "MONTH", 5, 3600, 0);
    }

    function _managed() private view returns (bytes[] memory calls) {
        address[] memory accounts = new address[](1);
        accounts[0] = BUYER;
        calls = new bytes[](9);
        calls[0] = abi.encodeCall(registry.setPrice, (1, 7));
        calls[1] = abi.encodeCall(registry.setState, (1, IDatasetRegistry.State.Paused));
        calls[2] = abi.encodeCall(registry.setAllowListOnly, (1, true));
        calls[3] = abi.encodeCall(registry.setListing, (1, accounts, IDatasetRegistry.Listing.Denied));
        calls[4] = abi.encodeCall(registry.addTier, (1, "YEAR", 6, 7200, 0));
        calls[5] = abi.encodeCall(registry.setTierPrice, (1, 1, 8));
        calls[6] = abi.encodeCall(registry.setMarket, (1, address(market)));
        calls[7] = abi.encodeCall(registry.closeTier, (1, 1));
        calls[8] = abi.encodeCall(registry.setManifest, (1, bytes32("m"), "uri"));
    }

    function _owned() private pure returns (bytes[] memory calls) {
        calls = new bytes[](3);
        calls[0] = abi.encodeCall(IDatasetRegistry.setNode, (1, address(0x90DE)));
        calls[1] = abi.encodeCall(IDatasetRegistry.setRoles, (1, BUYER, 3));
        calls[2] = abi.encodeCall(IDatasetRegistry.setPrivacyBudget, (1, 1_000_000, 1e12));
    }

    function _call(address caller, bytes memory data) private returns (bool done, bytes memory said) {
        vm.prank(caller);
        (done, said) = address(registry).call(data);
    }

    function _refused(address caller, bytes memory data, bytes memory refusal) private {
        (bool done, bytes memory said) = _call(caller, data);
        vm.assertTrue(!done && keccak256(said) == keccak256(refusal), "refused for this reason");
    }

    function test_stranger__everySetter__refuses() public {
        bytes memory refusal = abi.encodeWithSelector(IDatasetRegistry.NotDatasetOwner.selector, 1, STRANGER);
        bytes[] memory calls = _managed();
        for (uint256 i = 0; i < calls.length; ++i) {
            _refused(STRANGER, calls[i], refusal);
        }
        calls = _owned();
        for (uint256 i = 0; i < calls.length; ++i) {
            _refused(STRANGER, calls[i], refusal);
        }
    }

    function test_publisher__anythingButTheManifest__refuses() public {
        bytes memory refusal = abi.encodeWithSelector(IDatasetRegistry.RoleMissing.selector, 1, PUBLISHER, 1);
        bytes[] memory calls = _managed();
        for (uint256 i = 0; i < calls.length - 1; ++i) {
            _refused(PUBLISHER, calls[i], refusal);
        }
        (bool done,) = _call(PUBLISHER, calls[calls.length - 1]);
        vm.assertTrue(done, "the manifest");
    }

    function test_manager__prices_tiers_listsAndState__butNotWhatIsTheOwners() public {
        bytes[] memory calls = _managed();
        for (uint256 i = 0; i < calls.length; ++i) {
            (bool done,) = _call(MANAGER, calls[i]);
            vm.assertTrue(done, "a manager's");
        }
        bytes memory refusal = abi.encodeWithSelector(IDatasetRegistry.NotDatasetOwner.selector, 1, MANAGER);
        calls = _owned();
        for (uint256 i = 0; i < calls.length; ++i) {
            _refused(MANAGER, calls[i], refusal);
        }
        _refused(MANAGER, abi.encodeCall(registry.setState, (1, IDatasetRegistry.State.Retired)), refusal);
        IDatasetRegistry.Standing memory found = registry.standing(1);
        vm.assertTrue(found.state == IDatasetRegistry.State.Paused && found.allowListOnly, "standing");
        vm.assertEq(found.tierCount, 3, "tiers");
        vm.assertTrue(registry.listing(1, BUYER) == IDatasetRegistry.Listing.Denied, "denied");
        vm.assertEq(registry.tier(1, 0).priceUnits, 7, "price");
        vm.assertEq(registry.tier(1, 1).priceUnits, 8, "price of the tier");
        vm.assertTrue(registry.tier(1, 1).closed, "closed");
        vm.assertTrue(registry.dataset(1).manifestHash == bytes32("m"), "manifest");
    }

    function test_owner__everything__isKept() public {
        bytes[] memory calls = _owned();
        for (uint256 i = 0; i < calls.length; ++i) {
            (bool done,) = _call(HOSPITAL, calls[i]);
            vm.assertTrue(done, "the owner's");
        }
        vm.assertTrue(registry.dataset(1).node == address(0x90DE), "node");
        vm.assertEq(registry.rolesOf(1, BUYER), 3, "roles");
        vm.assertEq(registry.standing(1).epsilonMicro, 1_000_000, "budget");
        vm.expectRevert(abi.encodeWithSelector(IDatasetRegistry.UnknownRole.selector, 4));
        vm.prank(HOSPITAL);
        registry.setRoles(1, BUYER, 4);
    }

    function test_setPrivacyBudget__nothingOrNoProbability__refuses() public {
        uint64[2][2] memory bad = [[uint64(0), 0], [uint64(5), 1e18]];
        for (uint256 i = 0; i < bad.length; ++i) {
            vm.expectRevert(
                abi.encodeWithSelector(IDatasetRegistry.BadPrivacyBudget.selector, bad[i][0], bad[i][1])
            );
            vm.prank(HOSPITAL);
            registry.setPrivacyBudget(1, bad[i][0], bad[i][1]);
        }
    }

    /// @dev The prices of a dataset count in its market's token: allowed again, a market must take the same one.
    function test_allowMarket__noTokenOrAnotherOneThanBefore__refuses() public {
        Till till = new Till();
        vm.expectRevert(abi.encodeWithSelector(IDatasetRegistry.BadPaymentToken.selector, address(till), address(0)));
        registry.allowMarket(address(till), true);
        till.take(address(1));
        registry.allowMarket(address(till), true);
        registry.allowMarket(address(till), false);
        till.take(address(2));
        vm.expectRevert(abi.encodeWithSelector(IDatasetRegistry.BadPaymentToken.selector, address(till), address(2)));
        registry.allowMarket(address(till), true);
    }

    function test_setStorefront__stranger__refuses() public {
        vm.expectRevert(abi.encodeWithSelector(IDatasetRegistry.NotGuardian.selector, address(this), STRANGER));
        vm.prank(STRANGER);
        registry.setStorefront(STRANGER);
        vm.assertTrue(registry.storefront() == address(0), "none");
    }

    function test_addTier__seventeenth__refuses() public {
        for (uint256 i = 2; i < 16; ++i) {
            vm.prank(HOSPITAL);
            registry.addTier(1, "T", 1, 0, 0);
        }
        vm.expectRevert(abi.encodeWithSelector(IDatasetRegistry.TooManyTiers.selector, 1));
        vm.prank(HOSPITAL);
        registry.addTier(1, "T", 1, 0, 0);
    }

    function test_tiers__unknownOne__refusesEverywhere() public {
        bytes memory refusal = abi.encodeWithSelector(IDatasetRegistry.UnknownTier.selector, 1, 9);
        _refused(HOSPITAL, abi.encodeCall(registry.setTierPrice, (1, 9, 1)), refusal);
        _refused(HOSPITAL, abi.encodeCall(registry.closeTier, (1, 9)), refusal);
        _refused(HOSPITAL, abi.encodeCall(registry.mintTier, (1, 9, BUYER, 1)), refusal);
        _refused(HOSPITAL, abi.encodeCall(registry.tier, (1, 9)), refusal);
        refusal = abi.encodeWithSelector(IDatasetRegistry.UnknownDataset.selector, 9);
        _refused(HOSPITAL, abi.encodeCall(registry.tier, (9, 0)), refusal);
        _refused(HOSPITAL, abi.encodeCall(registry.standing, (9)), refusal);
        _refused(HOSPITAL, abi.encodeCall(registry.mayConsume, (9, BUYER)), refusal);
        _refused(HOSPITAL, abi.encodeCall(registry.mintTier, (9, 0, BUYER, 1)), refusal);
    }

    function test_mintTier__strangerClosedOrAboveItsCap__refuses() public {
        vm.prank(HOSPITAL);
        registry.addTier(1, "FEW", 5, 0, 10);
        bytes memory mint = abi.encodeCall(registry.mintTier, (1, 2, BUYER, 6));
        _refused(STRANGER, mint, abi.encodeWithSelector(IDatasetRegistry.NotMinter.selector, 1, STRANGER));
        (bool done,) = _call(HOSPITAL, mint);
        vm.assertTrue(done, "within the cap");
        _refused(HOSPITAL, mint, abi.encodeWithSelector(IDatasetRegistry.MaxSupplyExceeded.selector, 1, 2, 12, 10));
        vm.prank(HOSPITAL);
        registry.closeTier(1, 2);
        mint = abi.encodeCall(registry.mintTier, (1, 2, BUYER, 1));
        _refused(HOSPITAL, mint, abi.encodeWithSelector(IDatasetRegistry.TierIsClosed.selector, 1, 2));
        vm.assertEq(registry.tier(1, 2).minted, 6, "minted");
    }

    function test_setMarket__notAllowedOrNotPaused__refuses() public {
        bytes memory choose = abi.encodeCall(registry.setMarket, (1, STRANGER));
        _refused(HOSPITAL, choose, abi.encodeWithSelector(IDatasetRegistry.MarketNotAllowed.selector, STRANGER));
        choose = abi.encodeCall(registry.setMarket, (1, address(market)));
        _refused(
            HOSPITAL,
            choose,
            abi.encodeWithSelector(IDatasetRegistry.NotPaused.selector, 1, IDatasetRegistry.State.Active)
        );
    }

    function test_mayConsume__lists__decide() public {
        address[] memory accounts = new address[](1);
        accounts[0] = BUYER;
        vm.prank(HOSPITAL);
        registry.setAllowListOnly(1, true);
        vm.assertTrue(!registry.mayConsume(1, BUYER), "not on the list");
        vm.prank(HOSPITAL);
        registry.setListing(1, accounts, IDatasetRegistry.Listing.Allowed);
        vm.assertTrue(registry.mayConsume(1, BUYER), "on it");
        vm.prank(HOSPITAL);
        registry.setAllowListOnly(1, false);
        vm.assertTrue(registry.mayConsume(1, STRANGER), "open to all again");
    }
}
