// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {NodeRegistry} from "@bank/NodeRegistry.sol";
import {DatasetRegistry} from "@bank/DatasetRegistry.sol";
import {Storefront} from "@bank/Storefront.sol";
import {IDatasetRegistry} from "@bank/interfaces/IDatasetRegistry.sol";
import {IStorefront} from "@bank/interfaces/IStorefront.sol";
import {Bank} from "./Bank.sol";
import {Datatoken} from "@bank/Datatoken.sol";
import {BlocklistToken, CallbackToken, FeeOnTransferToken, PermitToken} from "./Tokens.sol";
import {bound, vm} from "./Vm.sol";

/// @dev A market as the storefront sees one: it takes the price, or, when told to, one unit less.
contract PayMarket {
    address public immutable paymentToken;
    uint256 public keepBack;
    mapping(uint256 => uint256) public paid;

    constructor(address token) {
        paymentToken = token;
    }

    function setKeepBack(uint256 units) external {
        keepBack = units;
    }

    function payRevenue(uint256 datasetId, uint256 units) external {
        paid[datasetId] += units - keepBack;
        IERC20(paymentToken).transferFrom(msg.sender, address(this), units - keepBack);
    }
}

contract StorefrontTest is Bank {
    address private constant PLATFORM = address(0x9A7F);
    address private constant FRONT_END = address(0xFE0);
    Storefront private shop;
    PayMarket private till;
    uint8 private hour;

    function setUp() public {
        _open(address(new BlocklistToken()), 1);
        till = new PayMarket(address(money));
        registry.allowMarket(address(till), true);
        shop = new Storefront(registry, PLATFORM, 100);
        registry.setStorefront(address(shop));
        vm.prank(HOSPITAL);
        registry.setState(1, IDatasetRegistry.State.Paused);
        vm.prank(HOSPITAL);
        registry.setMarket(1, address(till));
        vm.prank(HOSPITAL);
        registry.setState(1, IDatasetRegistry.State.Active);
        vm.prank(HOSPITAL);
        (hour,) = registry.addTier(1, "HOUR", 10_000, 3_600, 0);
        money.mint(BUYER, 1e30);
        vm.prank(BUYER);
        money.approve(address(shop), type(uint256).max);
    }

    function _purchase(uint32 count, uint256 most) private view returns (IStorefront.Purchase memory) {
        return IStorefront.Purchase(1, hour, count, address(till), most);
    }

    function _noPermit() private pure returns (IStorefront.Permit memory permit) {}

    function testFuzz_buy__anyPrice__paysPoolAndFeesToTheUnit(uint96 price, uint32 count) public {
        price = uint96(bound(price, 1, 1e15));
        count = uint32(bound(count, 1, 1e6));
        vm.prank(HOSPITAL);
        registry.setTierPrice(1, hour, price);
        vm.prank(HOSPITAL);
        shop.setPublishFee(1, FRONT_END, 1_000);
        uint256 total = shop.quote(1, hour, count).totalUnits;
        uint256 before = money.balanceOf(BUYER);
        vm.prank(BUYER);
        vm.assertEq(shop.buy(_purchase(count, total), _noPermit()), total, "said");
        vm.assertEq(before - money.balanceOf(BUYER), total, "taken");
        vm.assertEq(till.paid(1), uint256(price) * count, "pool");
        uint256 fees = shop.fees(address(money), PLATFORM) + shop.fees(address(money), FRONT_END);
        vm.assertEq(fees, total - uint256(price) * count, "fees");
        vm.assertEq(money.balanceOf(address(shop)), fees, "kept for them");
        vm.assertEq(registry.tier(1, hour).minted, uint256(count) * 1e18, "minted");
    }

    function test_buy__priceRaisedAfterTheQuote__refuses() public {
        vm.prank(HOSPITAL);
        registry.setTierPrice(1, hour, 20_000);
        vm.expectRevert(abi.encodeWithSelector(IStorefront.CostsMore.selector, 20_200, 10_100));
        vm.prank(BUYER);
        shop.buy(_purchase(1, 10_100), _noPermit());
    }

    function test_buy__pausedOrFree__refuses() public {
        vm.prank(HOSPITAL);
        registry.setTierPrice(1, hour, 0);
        vm.expectRevert(abi.encodeWithSelector(IStorefront.NothingToBuy.selector, 1, hour));
        vm.prank(BUYER);
        shop.buy(_purchase(1, 10_100), _noPermit());
        vm.prank(HOSPITAL);
        registry.setState(1, IDatasetRegistry.State.Paused);
        vm.expectRevert(abi.encodeWithSelector(IStorefront.MayNotConsume.selector, 1, BUYER));
        vm.prank(BUYER);
        shop.buy(_purchase(1, 10_100), _noPermit());
    }

    function test_buy__marketTakesLess__refuses() public {
        till.setKeepBack(1);
        vm.expectRevert(abi.encodeWithSelector(IStorefront.WrongUnits.selector, address(money), 101, 100));
        vm.prank(BUYER);
        shop.buy(_purchase(1, 10_100), _noPermit());
    }

    function test_buyAndOrder__badPermit__stillBuysWithTheAllowance() public {
        IStorefront.Permit memory spent = IStorefront.Permit(1, 1, 27, bytes32(0), bytes32(0));
        vm.prank(BUYER);
        uint64 expiry = shop.buyAndOrder(_purchase(1, 10_600), BUYER, IStorefront.Fee(FRONT_END, 500), spent);
        vm.assertEq(expiry, block.timestamp + 3_600, "an hour");
        vm.assertEq(shop.fees(address(money), FRONT_END), 500, "fee");
        vm.prank(FRONT_END);
        shop.withdrawFees(address(money), FRONT_END);
        vm.assertEq(money.balanceOf(FRONT_END), 500, "taken");
        vm.expectRevert(abi.encodeWithSelector(IStorefront.ConsumeFeeTooHigh.selector, 501, 500));
        vm.prank(BUYER);
        shop.buyAndOrder(_purchase(1, 10_601), BUYER, IStorefront.Fee(FRONT_END, 501), spent);
    }

    function test_buy__nothingOrForAStranger__refuses() public {
        vm.expectRevert(abi.encodeWithSelector(IStorefront.ZeroCount.selector));
        vm.prank(BUYER);
        shop.buy(_purchase(0, 10_100), _noPermit());
        IStorefront.Fee memory none;
        vm.expectRevert(abi.encodeWithSelector(IStorefront.OverLimit.selector, 1, hour, 2, 1));
        vm.prank(BUYER);
        shop.buyAndOrder(_purchase(2, 30_000), BUYER, none, _noPermit());
        _deny(HUB);
        vm.expectRevert(abi.encodeWithSelector(IStorefront.MayNotConsume.selector, 1, HUB));
        vm.prank(BUYER);
        shop.buyAndOrder(_purchase(1, 30_000), HUB, none, _noPermit());
        vm.expectRevert(abi.encodeWithSelector(IStorefront.NotOrdered.selector, 1, 0)); // a job pays for itself
        vm.prank(BUYER);
        shop.buyAndOrder(IStorefront.Purchase(1, 0, 1, address(till), 2_000_000), BUYER, none, _noPermit());
        vm.assertEq(money.balanceOf(BUYER), 1e30, "nothing was taken");
    }

    function test_buy__anotherMarketOrNone__refuses() public {
        IStorefront.Purchase memory other = IStorefront.Purchase(1, hour, 1, address(market), 10_100);
        vm.expectRevert(
            abi.encodeWithSelector(IStorefront.MarketChanged.selector, 1, address(market), address(till))
        );
        vm.prank(BUYER);
        shop.buy(other, _noPermit());
        registry.allowMarket(address(till), false);
        vm.expectRevert(abi.encodeWithSelector(IStorefront.NoMarket.selector, 1));
        vm.prank(BUYER);
        shop.buy(_purchase(1, 10_100), _noPermit());
    }

    function _deny(address account) private {
        address[] memory accounts = new address[](1);
        accounts[0] = account;
        vm.prank(HOSPITAL);
        registry.setListing(1, accounts, IDatasetRegistry.Listing.Denied);
    }

    /// @dev A datatoken of the hour in the buyer's hands, and the shop may burn it.
    function _holdOne() private returns (Datatoken datatoken) {
        datatoken = Datatoken(registry.tier(1, hour).datatoken);
        vm.prank(HOSPITAL);
        registry.mintTier(1, hour, BUYER, 1e18);
        vm.prank(BUYER);
        datatoken.approve(address(shop), 1e18);
    }

    function test_order__withADatatoken__burnsItAndPaysTheFrontEnd() public {
        Datatoken datatoken = _holdOne();
        uint256 before = money.balanceOf(BUYER);
        vm.expectRevert(abi.encodeWithSelector(IStorefront.ConsumeFeeTooHigh.selector, 501, 500));
        vm.prank(BUYER);
        shop.order(1, hour, HUB, address(till), IStorefront.Fee(FRONT_END, 501));
        vm.prank(BUYER);
        uint64 expiry = shop.order(1, hour, HUB, address(till), IStorefront.Fee(FRONT_END, 500));
        vm.assertEq(expiry, block.timestamp + 3_600, "an hour");
        vm.assertEq(shop.orderExpiry(1, hour, HUB), expiry, "the consumer's");
        vm.assertEq(shop.orderExpiry(1, hour, BUYER), 0, "not the payer's");
        vm.assertEq(datatoken.totalSupply(), 0, "burned");
        vm.assertEq(before - money.balanceOf(BUYER), 500, "paid");
        vm.assertEq(shop.fees(address(money), FRONT_END), 500, "credited");
        vm.assertEq(money.balanceOf(address(shop)), 500, "held");
        vm.expectRevert(); // it is spent
        vm.prank(BUYER);
        shop.order(1, hour, HUB, address(till), IStorefront.Fee(address(0), 0));
        _holdOne();
        vm.prank(BUYER);
        expiry = shop.order(1, hour, HUB, address(0), IStorefront.Fee(address(0), 0)); // no fee, so no market is asked
        vm.assertEq(expiry, block.timestamp + 7_200, "the second one begins where the first one ends");
    }

    function test_order__feeInATokenThatChargesForTransfers__refuses() public {
        PayMarket charging = new PayMarket(address(new FeeOnTransferToken()));
        FeeOnTransferToken token = FeeOnTransferToken(charging.paymentToken());
        _move(address(charging));
        token.mint(BUYER, 1_000);
        vm.prank(BUYER);
        token.approve(address(shop), 1_000);
        _holdOne();
        vm.expectRevert(abi.encodeWithSelector(IStorefront.WrongUnits.selector, address(token), 495, 500));
        vm.prank(BUYER);
        shop.order(1, hour, BUYER, address(charging), IStorefront.Fee(FRONT_END, 500));
    }

    function _move(address other) private {
        registry.allowMarket(other, true);
        vm.prank(HOSPITAL);
        registry.setState(1, IDatasetRegistry.State.Paused);
        vm.prank(HOSPITAL);
        registry.setMarket(1, other);
        vm.prank(HOSPITAL);
        registry.setState(1, IDatasetRegistry.State.Active);
    }

    function test_buy__tokenThatCallsBack__cannotEnterAgain() public {
        CallbackToken token = new CallbackToken();
        PayMarket other = new PayMarket(address(token));
        _move(address(other));
        token.mint(BUYER, 1e9);
        vm.prank(BUYER);
        token.approve(address(shop), 1e9);
        token.arm(address(shop), abi.encodeCall(shop.withdrawFees, (address(token), address(token))));
        vm.prank(BUYER);
        shop.buy(IStorefront.Purchase(1, hour, 1, address(other), 10_100), _noPermit());
        bytes4 said = bytes4(token.answer());
        vm.assertTrue(said == bytes4(keccak256("ReentrancyGuardReentrantCall()")), "refused at the door");
        vm.assertEq(token.balanceOf(address(shop)), 100, "only the platform's fee is here");
    }

    /// @dev Anybody who sees the permit may submit it first: the purchase must go through all the same.
    function test_buy__permitUsedByAnother__buysAllTheSame() public {
        PermitToken token = new PermitToken();
        PayMarket other = new PayMarket(address(token));
        _move(address(other));
        address buyer = vm.addr(77);
        token.mint(buyer, 10_100);
        uint256 until = block.timestamp + 60;
        bytes32 digest = keccak256(
            abi.encodePacked(
                hex"1901",
                token.DOMAIN_SEPARATOR(),
                keccak256(
                    abi.encode(
                        keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)"),
                        buyer,
                        address(shop),
                        10_100,
                        0,
                        until
                    )
                )
            )
        );
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(77, digest);
        token.permit(buyer, address(shop), 10_100, until, v, r, s);
        vm.prank(buyer);
        shop.buy(
            IStorefront.Purchase(1, hour, 1, address(other), 10_100), IStorefront.Permit(10_100, until, v, r, s)
        );
        vm.assertEq(token.balanceOf(buyer), 0, "paid once");
        vm.assertEq(Datatoken(registry.tier(1, hour).datatoken).balanceOf(buyer), 1e18, "bought");
    }

    function test_dispense__eachLimitInTurn__refuses() public {
        vm.expectRevert(abi.encodeWithSelector(IStorefront.ZeroCount.selector));
        vm.prank(BUYER);
        shop.dispense(1, hour, 0);
        vm.prank(HOSPITAL);
        shop.setLimits(1, hour, IStorefront.Limits(true, true, 2, 3, 4));
        vm.expectRevert(abi.encodeWithSelector(IStorefront.NotAllowListed.selector, 1, BUYER));
        vm.prank(BUYER);
        shop.dispense(1, hour, 1);
        address[] memory two = new address[](2);
        (two[0], two[1]) = (BUYER, HUB);
        vm.prank(HOSPITAL);
        registry.setListing(1, two, IDatasetRegistry.Listing.Allowed);
        vm.expectRevert(abi.encodeWithSelector(IStorefront.OverLimit.selector, 1, hour, 3, 2));
        vm.prank(BUYER);
        shop.dispense(1, hour, 3);
        vm.prank(BUYER);
        shop.dispense(1, hour, 2);
        vm.expectRevert(abi.encodeWithSelector(IStorefront.OverLimit.selector, 1, hour, 2, 1));
        vm.prank(BUYER);
        shop.dispense(1, hour, 2);
        vm.prank(BUYER);
        shop.dispense(1, hour, 1);
        vm.expectRevert(abi.encodeWithSelector(IStorefront.OverLimit.selector, 1, hour, 2, 1));
        vm.prank(HUB);
        shop.dispense(1, hour, 2);
        vm.prank(HUB);
        shop.dispense(1, hour, 1);
        vm.prank(HOSPITAL);
        shop.setLimits(1, hour, IStorefront.Limits(true, false, 9, 9, 9));
        _deny(BUYER);
        vm.expectRevert(abi.encodeWithSelector(IStorefront.MayNotConsume.selector, 1, BUYER));
        vm.prank(BUYER);
        shop.dispense(1, hour, 1);
    }

    function test_setLimits__strangerOrUnknownTier__refuses() public {
        IStorefront.Limits memory open = IStorefront.Limits(true, false, 1, 1, 1);
        vm.expectRevert(abi.encodeWithSelector(IStorefront.NotManager.selector, 1, BUYER));
        vm.prank(BUYER);
        shop.setLimits(1, hour, open);
        vm.expectRevert(abi.encodeWithSelector(IDatasetRegistry.UnknownTier.selector, 1, 9));
        vm.prank(HOSPITAL);
        shop.setLimits(1, 9, open);
    }

    function test_setPublishFee__strangerBadOrTwice__refuses() public {
        vm.expectRevert(abi.encodeWithSelector(IDatasetRegistry.NotDatasetOwner.selector, 1, BUYER));
        vm.prank(BUYER);
        shop.setPublishFee(1, BUYER, 1);
        vm.expectRevert(abi.encodeWithSelector(IDatasetRegistry.UnknownDataset.selector, 9));
        vm.prank(HOSPITAL);
        shop.setPublishFee(9, FRONT_END, 1);
        uint16[3] memory bps = [uint16(0), 1_001, 5];
        address[3] memory to = [FRONT_END, FRONT_END, address(0)];
        for (uint256 i = 0; i < 3; ++i) {
            vm.expectRevert(abi.encodeWithSelector(IStorefront.BadPublishFee.selector, to[i], bps[i]));
            vm.prank(HOSPITAL);
            shop.setPublishFee(1, to[i], bps[i]);
        }
        vm.prank(HOSPITAL);
        shop.setPublishFee(1, FRONT_END, 5);
        vm.assertTrue(shop.publishFee(1).recipient == FRONT_END && shop.publishFee(1).bps == 5, "kept");
        vm.expectRevert(abi.encodeWithSelector(IStorefront.PublishFeeAlreadySet.selector, 1));
        vm.prank(HOSPITAL);
        shop.setPublishFee(1, HUB, 1);
    }

    function test_withdrawFees__nothingOrTwice__refuses() public {
        vm.prank(BUYER);
        shop.buy(_purchase(1, 10_100), _noPermit());
        vm.prank(BUYER);
        shop.buy(_purchase(1, 10_100), _noPermit());
        vm.expectRevert(abi.encodeWithSelector(IStorefront.NoFees.selector, address(money), BUYER));
        vm.prank(BUYER);
        shop.withdrawFees(address(money), BUYER);
        vm.prank(PLATFORM);
        vm.assertEq(shop.withdrawFees(address(money), HUB), 200, "said");
        vm.assertEq(money.balanceOf(HUB), 200, "to whom they like");
        vm.expectRevert(abi.encodeWithSelector(IStorefront.NoFees.selector, address(money), PLATFORM));
        vm.prank(PLATFORM);
        shop.withdrawFees(address(money), HUB);
    }

    function test_deploy__noPlatformOrTooMuch__refuses() public {
        vm.expectRevert(abi.encodeWithSelector(IStorefront.BadPlatform.selector, address(0), 1));
        new Storefront(registry, address(0), 1);
        vm.expectRevert(abi.encodeWithSelector(IStorefront.BadPlatform.selector, PLATFORM, 501));
        new Storefront(registry, PLATFORM, 501);
    }

    function test_dispense__datasetTransferred__isOff() public {
        vm.prank(HOSPITAL);
        shop.setLimits(1, hour, IStorefront.Limits(true, false, 1, 1, 1));
        vm.prank(HOSPITAL);
        registry.transferFrom(HOSPITAL, HUB, 1);
        vm.expectRevert(abi.encodeWithSelector(IStorefront.DispenserOff.selector, 1, hour));
        vm.prank(BUYER);
        shop.dispense(1, hour, 1);
    }
}

/// @dev Buys, dispenses, gives, hands the dataset on and grants roles at random, and keeps its own books.
contract Shoppers is Bank {
    Storefront public shop;
    PayMarket public till;
    uint256 public bought;
    uint256 public dispensed;
    uint256 public given;
    uint256 public paidFees;
    address[2] private _owners = [HOSPITAL, HUB];
    address[3] public people = [BUYER, address(0xB1), address(0xB2)];
    uint256 private _owner;

    constructor() {
        _open(address(new BlocklistToken()), 1);
        till = new PayMarket(address(money));
        registry = new DatasetRegistry(address(this), new NodeRegistry());
        registry.allowMarket(address(till), true);
        shop = new Storefront(registry, HUB, 500);
        registry.setStorefront(address(shop));
        _list(vm.addr(1), 999, BPS);
        for (uint256 i = 0; i < 3; ++i) {
            money.mint(people[i], 1e30);
            vm.prank(people[i]);
            money.approve(address(shop), type(uint256).max);
        }
    }

    function buy(uint256 who, uint32 count) external {
        count = uint32(bound(count, 1, 9));
        uint256 total = shop.quote(1, 0, count).totalUnits;
        IStorefront.Permit memory none;
        vm.prank(people[who % 3]);
        paidFees += shop.buy(IStorefront.Purchase(1, 0, count, address(till), total), none) - uint256(count) * 999;
        bought += count;
    }

    function limit(uint32 perAccount, uint32 inAll) external {
        vm.prank(_owners[_owner]);
        shop.setLimits(1, 0, IStorefront.Limits(true, false, 3, perAccount % 5, inAll % 9));
    }

    function dispense(uint256 who, uint32 count) external {
        vm.prank(people[who % 3]);
        try shop.dispense(1, 0, uint32(bound(count, 1, 4))) {
            dispensed += bound(count, 1, 4);
        } catch {}
    }

    function give(uint32 count) external {
        vm.prank(_owners[_owner]);
        registry.mintDatatokens(1, BUYER, uint256(count) * ONE_JOB);
        given += count;
    }

    function handOn() external {
        vm.prank(_owners[_owner]);
        registry.setRoles(1, BUYER, 1);
        vm.prank(_owners[_owner]);
        registry.transferFrom(_owners[_owner], _owners[1 - _owner], 1);
        _owner = 1 - _owner;
    }

    function books() external view returns (DatasetRegistry, BlocklistToken) {
        return (registry, money);
    }
}

contract StorefrontInvariantTest {
    Shoppers private _crowd;

    function setUp() public {
        _crowd = new Shoppers();
    }

    function targetContracts() public view returns (address[] memory found) {
        found = new address[](1);
        found[0] = address(_crowd);
    }

    function invariant_mintedIsBoughtDispensedAndGiven() public view {
        (DatasetRegistry registry,) = _crowd.books();
        uint256 sum = _crowd.bought() + _crowd.dispensed() + _crowd.given();
        vm.assertEq(registry.tier(1, 0).minted, sum * 1e18, "minted");
    }

    function invariant_dispenserStaysBelowTheHighestLimits() public view {
        uint256 sum = 0;
        for (uint256 i = 0; i < 3; ++i) {
            (uint32 inAll, uint32 own) = _crowd.shop().dispensed(1, 0, _crowd.people(i));
            sum += own;
            vm.assertLe(own, 4, "per account");
            vm.assertLe(inAll, 8, "in all");
        }
        vm.assertEq(sum, _crowd.dispensed(), "counted");
    }

    function invariant_feesAreWhatWasPaidAndRolesNeverOutliveTheOwner() public view {
        (DatasetRegistry registry, BlocklistToken money) = _crowd.books();
        uint256 credited = _crowd.shop().fees(address(money), address(0xFEE));
        vm.assertEq(credited, _crowd.paidFees(), "fees");
        vm.assertEq(money.balanceOf(address(_crowd.shop())), credited, "held");
        vm.assertEq(registry.rolesOf(1, address(0xB0B)), 0, "roles");
    }
}
