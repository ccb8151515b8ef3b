// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {Market} from "@bank/Market.sol";
import {UnexpectedAmountReceived} from "@bank/RevenuePools.sol";
import {IDatasetRegistry} from "@bank/interfaces/IDatasetRegistry.sol";
import {INodeRegistry} from "@bank/interfaces/INodeRegistry.sol";
import {IJobEscrow} from "@bank/interfaces/IJobEscrow.sol";
import {IRevenuePools} from "@bank/interfaces/IRevenuePools.sol";
import {Bank} from "./Bank.sol";
import {BlocklistToken, CallbackToken, ContractWallet, FeeOnTransferToken, PermitToken} from "./Tokens.sol";
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
        vm.assertEq(job.accepted, 7, "by all three");
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
        terms.lines = new bytes(65 * 49);
        _createRefused(terms, abi.encodeWithSelector(IJobEscrow.BadDatasetCount.selector, 65));
        terms.lines = new bytes(2 * 49 - 1);
        _createRefused(terms, abi.encodeWithSelector(IJobEscrow.BadDatasetCount.selector, 1));
    }

    function test_createJob__voucherBeyondTheList__refuses() public {
        IJobEscrow.Terms memory terms = _terms(2, 1, 0, 0);
        money.mint(BUYER, terms.amountUnits);
        terms.vouchers = 4;
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.BadDatasetCount.selector, 2));
        vm.prank(BUYER);
        market.createJob(terms);
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

    function test_createJob__amountBelowRewardAndFee__refuses() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 100, 10);
        terms.amountUnits = 300;
        _fund(terms); // less than price and pool: the hospital may accept, it can never be paid more than 300
        terms.amountUnits = 109;
        terms.feeUnits = 5;
        terms.rewardUnits = 105;
        _createRefused(terms, abi.encodeWithSelector(IJobEscrow.AmountTooLow.selector, 109, 110));
    }

    function test_createJob__disputeTermsThatCannotEnd__refuses() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        _arbitrate(terms, 0, 5, 0);
        _createRefused(terms, abi.encodeWithSelector(IJobEscrow.BadDispute.selector, 0, ARBITER, 0));
        _arbitrate(terms, 30 days + 1, 5, 0);
        _createRefused(terms, abi.encodeWithSelector(IJobEscrow.BadDispute.selector, 30 days + 1, ARBITER, 0));
        _arbitrate(terms, 30 days, 5, 10_001);
        _createRefused(terms, abi.encodeWithSelector(IJobEscrow.BadDispute.selector, 30 days, ARBITER, 10_001));
        terms.silentBps = 10_000;
        _create(terms);
        terms.arbiter = address(0);
        _createRefused(terms, abi.encodeWithSelector(IJobEscrow.BadDispute.selector, 30 days, address(0), 10_000));
    }

    function test_createJob__whilePaused__refusesAndFundedJobsGoOn() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        _fund(terms);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.NotGuardian.selector, GUARDIAN, ANYONE));
        vm.prank(ANYONE);
        market.pauseNewJobs(0);
        uint40 until = uint40(block.timestamp + 14 days);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.BadPause.selector, until + 1, until));
        vm.prank(GUARDIAN);
        market.pauseNewJobs(until + 1);
        vm.prank(GUARDIAN);
        market.pauseNewJobs(until);
        IJobEscrow.Terms memory other = _terms(2, 1, 0, 0);
        _createRefused(other, abi.encodeWithSelector(IJobEscrow.NewJobsArePaused.selector, until));
        _settle(terms, _result(1, 1, 0), 1);
        vm.warp(until + 1);
        other.deadline = uint40(until + 1 hours);
        _fund(other); // a pause ends by itself
    }

    // ---- permit

    function test_createJobWithPermit__oneTransaction__funded() public {
        (market, money) = _marketOf(address(new PermitToken()));
        uint256 key = 0xB0B5;
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        terms.buyer = vm.addr(key);
        money.mint(terms.buyer, terms.amountUnits);
        (uint8 v, bytes32 r, bytes32 s) = _permit(key, terms.amountUnits);
        vm.prank(terms.buyer);
        bytes32 jobId = market.createJobWithPermit(terms, block.timestamp, v, r, s);
        vm.assertTrue(market.job(jobId).status == IJobEscrow.Status.Funded, "funded");
    }

    function test_createJobWithPermit__permitUsedBySomebodyElseFirst__fundedAllTheSame() public {
        (market, money) = _marketOf(address(new PermitToken()));
        uint256 key = 0xB0B5;
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        terms.buyer = vm.addr(key);
        money.mint(terms.buyer, terms.amountUnits);
        (uint8 v, bytes32 r, bytes32 s) = _permit(key, terms.amountUnits);
        PermitToken(address(money)).permit(
            terms.buyer, address(market), terms.amountUnits, block.timestamp, v, r, s
        );
        vm.prank(terms.buyer);
        bytes32 jobId = market.createJobWithPermit(terms, block.timestamp, v, r, s);
        vm.assertTrue(market.job(jobId).status == IJobEscrow.Status.Funded, "funded");
    }

    function test_createJobWithPermit__noPermitAndNoAllowance__refuses() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        money.mint(BUYER, terms.amountUnits);
        vm.expectRevert();
        vm.prank(BUYER);
        market.createJobWithPermit(terms, block.timestamp, 27, 0, 0);
    }

    function _marketOf(address token) private returns (Market, BlocklistToken) {
        return (new Market(registry, IERC20(token), HUB, GUARDIAN, BOND), BlocklistToken(token));
    }

    function _permit(uint256 key, uint256 units) private view returns (uint8, bytes32, bytes32) {
        PermitToken token = PermitToken(address(money));
        bytes32 structHash = keccak256(
            abi.encode(
                keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)"),
                vm.addr(key),
                address(market),
                units,
                token.nonces(vm.addr(key)),
                block.timestamp
            )
        );
        return vm.sign(key, keccak256(abi.encodePacked(hex"1901", token.DOMAIN_SEPARATOR(), structHash)));
    }

    // ---- accept

    function test_accept__oneAfterTheOther__countsEachOnce() public {
        IJobEscrow.Terms memory terms = _terms(3, 2, 0, 0);
        bytes32 jobId = _create(terms);
        _accept(terms, 4);
        _accept(terms, 1);
        vm.assertEq(market.job(jobId).accepted, 5, "bits");
        vm.assertEq(market.standing(1).accepted + market.standing(2).accepted + market.standing(3).accepted, 2, "counted");
        bytes[] memory signatures = _signedBy(5, _acceptance(jobId));
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.AlreadyAccepted.selector, 0));
        market.accept(terms, 5, signatures);
    }

    function _acceptRefused(IJobEscrow.Terms memory terms, uint64 who, bytes[] memory signatures, bytes memory refusal)
        private
    {
        vm.expectRevert(refusal);
        market.accept(terms, who, signatures);
    }

    function test_accept__notOneSignaturePerBit__refuses() public {
        IJobEscrow.Terms memory terms = _terms(3, 2, 0, 0);
        bytes[] memory two = _signedBy(3, _acceptance(_create(terms)));
        _acceptRefused(terms, 1, two, abi.encodeWithSelector(IJobEscrow.QuorumNotMet.selector, 2, 1));
        _acceptRefused(terms, 7, two, abi.encodeWithSelector(IJobEscrow.QuorumNotMet.selector, 2, 3));
        _acceptRefused(terms, 0, new bytes[](0), abi.encodeWithSelector(IJobEscrow.QuorumNotMet.selector, 0, 0));
    }

    function test_accept__bitBeyondTheList__refuses() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        bytes[] memory signatures = _signedBy(2, _acceptance(_create(terms)));
        _acceptRefused(terms, 2, signatures, abi.encodeWithSelector(IJobEscrow.BadSignature.selector, 1, address(0)));
    }

    function test_accept__signatureOfAnotherJobOrByAStranger__refuses() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        bytes[] memory signatures = _signedBy(1, _acceptance(_create(terms)));
        terms.specHash = keccak256("another");
        bytes32 jobId = _create(terms);
        bytes memory refusal = abi.encodeWithSelector(IJobEscrow.BadSignature.selector, 0, vm.addr(keys[0]));
        _acceptRefused(terms, 1, signatures, refusal);
        signatures[0] = _sign(keys[1], _acceptance(jobId));
        _acceptRefused(terms, 1, signatures, refusal);
        signatures[0] = _sign(keys[0], _rejection(jobId, 0));
        _acceptRefused(terms, 1, signatures, refusal);
    }

    function test_accept__highS__refuses() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        bytes32 structHash = _acceptance(_create(terms));
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(keys[0], _typed(block.chainid, address(market), structHash));
        bytes32 high = bytes32(0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141 - uint256(s));
        bytes[] memory signatures = new bytes[](1);
        signatures[0] = abi.encodePacked(r, high, v == 27 ? 28 : 27);
        _acceptRefused(terms, 1, signatures, abi.encodeWithSelector(IJobEscrow.BadSignature.selector, 0, vm.addr(keys[0])));
        signatures[0] = abi.encodePacked(r, v == 27 ? s : s | bytes32(uint256(1 << 255))); // 64 bytes: ERC-2098
        market.accept(terms, 1, signatures);
    }

    function test_accept__nodeKeyRotatedSinceTheQuote__refuses() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        bytes[] memory signatures = _signedBy(1, _acceptance(_create(terms)));
        vm.prank(HOSPITAL);
        registry.setNode(1, ANYONE);
        _acceptRefused(
            terms, 1, signatures, abi.encodeWithSelector(IDatasetRegistry.NodeMismatch.selector, 1, vm.addr(keys[0]), ANYONE)
        );
    }

    function test_accept__aKeyThatIsNotTheDatasets__cannotSpeakForIt() public {
        IJobEscrow.Terms memory terms = _terms(2, 1, 0, 0);
        JobLine memory line = _lineAt(terms, 0);
        line.datasetId = 3;
        _replace(terms, 0, line);
        bytes[] memory signatures = _signedBy(1, _acceptance(_create(terms)));
        _acceptRefused(
            terms,
            1,
            signatures,
            abi.encodeWithSelector(IDatasetRegistry.NodeMismatch.selector, 3, vm.addr(keys[0]), vm.addr(keys[2]))
        );
    }

    /// @dev HOSPITAL's first registration, with this node key.
    function _enrol(uint256 key) private returns (uint256 hospital) {
        vm.prank(HOSPITAL);
        hospital = nodes.register();
        bytes memory consent = _consent(key, hospital, HOSPITAL);
        vm.prank(HOSPITAL);
        nodes.addNodeKey(hospital, vm.addr(key), uint40(vm.getBlockTimestamp()), type(uint40).max, consent);
    }

    function _consent(uint256 key, uint256 hospital, address owner) private view returns (bytes memory) {
        bytes32 domain = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("datahub nodes"),
                keccak256("1"),
                block.chainid,
                address(nodes)
            )
        );
        bytes32 consent =
            keccak256(abi.encode(keccak256("NodeKeyConsent(uint256 hospitalId,address owner)"), hospital, owner));
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, keccak256(abi.encodePacked(hex"1901", domain, consent)));
        return abi.encodePacked(r, s, v);
    }

    function test_accept__keyRotatedInTheNodeRegistry__bothServeMeanwhileThenTheNewOne() public {
        uint256 hospital = _enrol(keys[0]);
        IJobEscrow.Terms memory old = _terms(1, 1, 0, 0);
        old.specHash = keccak256("quoted before");
        bytes[] memory oldSigned = _signedBy(1, _acceptance(_create(old)));
        IJobEscrow.Terms memory late = _terms(1, 1, 0, 0);
        bytes[] memory lateSigned = _signedBy(1, _acceptance(_create(late)));
        uint256 next = 0xBEEF;
        bytes memory consent = _consent(next, hospital, HOSPITAL);
        vm.prank(HOSPITAL);
        nodes.rotateNodeKey(vm.addr(keys[0]), vm.addr(next), 600, consent);
        market.accept(old, 1, oldSigned);
        JobLine memory line = _lineAt(late, 0);
        line.node = vm.addr(next);
        IJobEscrow.Terms memory new_ = _terms(1, 1, 0, 0);
        _replace(new_, 0, line);
        bytes[] memory signed = new bytes[](1);
        signed[0] = _sign(next, _acceptance(_create(new_)));
        market.accept(new_, 1, signed); // the dataset still names the old key; its owner's hospital has both
        vm.warp(vm.getBlockTimestamp() + 600);
        bytes4 refusal = IDatasetRegistry.NodeKeyNotActive.selector;
        _acceptRefused(
            late, 1, lateSigned, abi.encodeWithSelector(refusal, vm.addr(keys[0]), INodeRegistry.KeyState.Expired)
        );
        IJobEscrow.Result memory r = _result(1, 1, 0);
        _settle(old, r, 1); // what was accepted in time is settled with the old key
        vm.assertEq(market.standing(1).settled, 1, "settled");
    }

    function test_accept__activeKeyOfAnotherOwnersHospital__refuses() public {
        uint256 stranger = 0xBEEF;
        vm.prank(ANYONE);
        uint256 hospital = nodes.register();
        bytes memory consent = _consent(stranger, hospital, ANYONE);
        vm.prank(ANYONE);
        nodes.addNodeKey(hospital, vm.addr(stranger), 0, type(uint40).max, consent);
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        JobLine memory line = _lineAt(terms, 0);
        line.node = vm.addr(stranger);
        _replace(terms, 0, line);
        bytes[] memory signed = new bytes[](1);
        signed[0] = _sign(stranger, _acceptance(_create(terms)));
        bytes4 refusal = IDatasetRegistry.NodeMismatch.selector;
        _acceptRefused(terms, 1, signed, abi.encodeWithSelector(refusal, 1, vm.addr(stranger), vm.addr(keys[0])));
    }

    function test_accept__revokedKeyThatTheDatasetStillNames__refuses() public {
        _enrol(keys[0]);
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        bytes[] memory signed = _signedBy(1, _acceptance(_create(terms)));
        vm.prank(HOSPITAL);
        nodes.revokeNodeKey(vm.addr(keys[0]));
        bytes4 refusal = IDatasetRegistry.NodeKeyNotActive.selector;
        _acceptRefused(
            terms, 1, signed, abi.encodeWithSelector(refusal, vm.addr(keys[0]), INodeRegistry.KeyState.Revoked)
        );
    }

    function test_accept__datasetNobodyListed__refuses() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        JobLine memory line = _lineAt(terms, 0);
        line.datasetId = 99;
        _replace(terms, 0, line);
        bytes[] memory signed = _signedBy(1, _acceptance(_create(terms)));
        _acceptRefused(terms, 1, signed, abi.encodeWithSelector(IDatasetRegistry.UnknownDataset.selector, 99));
    }

    function test_revokeAcceptances__stolenKeyRevoked__cannotAttestAndTheOthersGoOn() public {
        _enrol(keys[0]);
        IJobEscrow.Terms memory terms = _terms(3, 2, 0, 0);
        bytes32 jobId = _fund(terms);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.NodeKeyNotRevoked.selector, vm.addr(keys[0])));
        market.revokeAcceptances(terms, 1);
        vm.prank(HOSPITAL);
        nodes.revokeNodeKey(vm.addr(keys[0]));
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.NodeKeyNotRevoked.selector, vm.addr(keys[1])));
        market.revokeAcceptances(terms, 3); // a key that nobody registered cannot be revoked
        vm.prank(ANYONE);
        market.revokeAcceptances(terms, 1);
        vm.assertEq(market.job(jobId).accepted, 6, "the two others");
        vm.assertEq(market.standing(1).failed, 1, "it agreed and will not deliver");
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.NotAccepted.selector, 1, 6));
        market.revokeAcceptances(terms, 1);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.NotAccepted.selector, 0, 6));
        market.revokeAcceptances(terms, 0);
        _settleRefused(terms, _result(3, 7, 0), 7, abi.encodeWithSelector(IJobEscrow.NotAccepted.selector, 7, 6));
        bytes[] memory again = _signedBy(1, _acceptance(jobId));
        bytes4 refusal = IDatasetRegistry.NodeKeyNotActive.selector;
        _acceptRefused(
            terms, 1, again, abi.encodeWithSelector(refusal, vm.addr(keys[0]), INodeRegistry.KeyState.Revoked)
        );
        _settle(terms, _result(3, 6, 0), 6);
        vm.assertEq(market.pool(1).hospitalUnits, 0, "not paid");
    }

    function test_revokeAcceptances__jobThatIsOver__refuses() public {
        _enrol(keys[0]);
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        bytes32 jobId = _fund(terms);
        _settle(terms, _result(1, 1, 0), 1);
        vm.prank(HOSPITAL);
        nodes.revokeNodeKey(vm.addr(keys[0]));
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.WrongStatus.selector, jobId, IJobEscrow.Status.Settled));
        market.revokeAcceptances(terms, 1);
    }

    function test_accept__datasetPausedOrBuyerKeptOut__refuses() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        bytes[] memory signatures = _signedBy(1, _acceptance(_create(terms)));
        bytes memory refusal = abi.encodeWithSelector(IDatasetRegistry.BuyerNotServed.selector, 1, BUYER);
        vm.prank(HOSPITAL);
        registry.setState(1, IDatasetRegistry.State.Paused);
        _acceptRefused(terms, 1, signatures, refusal);
        vm.prank(HOSPITAL);
        registry.setState(1, IDatasetRegistry.State.Active);
        address[] memory buyers = new address[](1);
        buyers[0] = BUYER;
        vm.prank(HOSPITAL);
        registry.setListing(1, buyers, IDatasetRegistry.Listing.Denied);
        _acceptRefused(terms, 1, signatures, refusal);
        vm.prank(HOSPITAL);
        registry.setListing(1, buyers, IDatasetRegistry.Listing.None);
        market.accept(terms, 1, signatures);
    }

    function test_accept__datasetSoldInAnotherMarket__refuses() public {
        Market other = new Market(registry, IERC20(address(money)), HUB, GUARDIAN, BOND);
        registry.allowMarket(address(other), true);
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        bytes[] memory signatures = _signedBy(1, _acceptance(_create(terms)));
        vm.prank(HOSPITAL);
        registry.setState(1, IDatasetRegistry.State.Paused);
        vm.prank(HOSPITAL);
        registry.setMarket(1, address(other));
        _acceptRefused(
            terms, 1, signatures, abi.encodeWithSelector(IDatasetRegistry.OtherMarket.selector, 1, address(other))
        );
    }

    function test_settle__voucherOfAnotherTier__isTheOneThatIsBurned() public {
        vm.prank(HOSPITAL);
        (uint8 tier, address token) = registry.addTier(1, "PRIORITY", 5, 0, 0);
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        JobLine memory line = _lineAt(terms, 0);
        (line.tier, line.priceUnits) = (tier, 0);
        terms.vouchers = 1;
        _replace(terms, 0, line);
        vm.prank(HOSPITAL);
        registry.mintTier(1, tier, BUYER, ONE_JOB);
        vm.prank(BUYER);
        IERC20(token).approve(address(market), ONE_JOB);
        _fund(terms);
        vm.assertEq(IERC20(token).balanceOf(address(market)), ONE_JOB, "held");
        _settle(terms, _result(1, 1, 0), 1);
        vm.assertEq(IERC20(token).totalSupply(), 0, "burned");
        vm.assertEq(_datatoken(1).balanceOf(BUYER), ONE_JOB, "that of tier 0 is untouched");
    }

    function test_accept__datasetNotListed__refuses() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        JobLine memory line = _lineAt(terms, 0);
        line.datasetId = 99;
        _replace(terms, 0, line);
        bytes[] memory signatures = _signedBy(1, _acceptance(_create(terms)));
        _acceptRefused(terms, 1, signatures, abi.encodeWithSelector(IDatasetRegistry.UnknownDataset.selector, 99));
    }

    function test_accept__afterTheDeadline__refuses() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        bytes[] memory signatures = _signedBy(1, _acceptance(_create(terms)));
        vm.warp(terms.deadline + 1);
        _acceptRefused(
            terms,
            1,
            signatures,
            abi.encodeWithSelector(IJobEscrow.DeadlinePassed.selector, terms.deadline, terms.deadline + 1)
        );
    }

    function test_accept__jobNotFunded__refuses() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        bytes[] memory signatures = _signedBy(1, _acceptance(market.hashTerms(terms)));
        _acceptRefused(terms, 1, signatures, _wrongStatus(terms, IJobEscrow.Status.None));
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

    function test_createJob__feeOnTransferToken__refuses() public {
        FeeOnTransferToken token = new FeeOnTransferToken();
        market = new Market(registry, token, HUB, GUARDIAN, BOND);
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
        _payByVoucher(terms, 1);
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
        _payByVoucher(terms, 0);
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

    function test_settle__notOneSignaturePerSigner__refuses() public {
        IJobEscrow.Terms memory terms = _terms(3, 2, 0, 0);
        _fund(terms);
        IJobEscrow.Result memory r = _result(3, 7, 0);
        bytes[] memory one = _attest(terms, r, 1);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.QuorumNotMet.selector, 1, 2));
        market.settle(terms, r, 3, one);
        bytes[] memory three = _attest(terms, r, 7);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.QuorumNotMet.selector, 2, 3));
        market.settle(terms, r, 3, three);
    }

    function test_settle__tooFewWorked__refuses() public {
        IJobEscrow.Terms memory terms = _terms(3, 2, 0, 0);
        _fund(terms);
        _settleRefused(terms, _result(3, 4, 0), 4, abi.encodeWithSelector(IJobEscrow.QuorumNotMet.selector, 1, 2));
    }

    function test_settle__workWithoutAcceptance__refuses() public {
        IJobEscrow.Terms memory terms = _terms(3, 2, 0, 0);
        _create(terms);
        _accept(terms, 3);
        _settleRefused(terms, _result(3, 7, 0), 3, abi.encodeWithSelector(IJobEscrow.NotAccepted.selector, 7, 3));
        IJobEscrow.Result memory r = _result(3, 3 | 1 << 63, 0);
        _settleRefused(terms, r, 3, abi.encodeWithSelector(IJobEscrow.NotAccepted.selector, r.worked, 3));
        _settle(terms, _result(3, 3, 0), 3);
    }

    function test_settle__signerThatDidNotWork__refuses() public {
        IJobEscrow.Terms memory terms = _terms(3, 2, 0, 0);
        _fund(terms);
        _settleRefused(terms, _result(3, 3, 0), 5, abi.encodeWithSelector(IJobEscrow.NotAccepted.selector, 5, 3));
    }

    function test_settle__oneKeyListedTwice__cannotMeetAQuorumOfTwo() public {
        uint256 twin = _list(vm.addr(keys[0]), 5, BPS);
        IJobEscrow.Terms memory terms = _terms(2, 2, 0, 0);
        _replace(terms, 1, _line(twin));
        bytes32 jobId = _create(terms);
        keys[1] = keys[0];
        _accept(terms, 3);
        _settleRefused(terms, _result(2, 3, 0), 3, abi.encodeWithSelector(IJobEscrow.NodesNotAscending.selector, 1));
        bytes[] memory signatures = _signedBy(3, _rejection(jobId, 0));
        terms.quorum = 1; // two refusals are needed to end it; one key has one voice
        jobId = _create(terms);
        signatures = _signedBy(3, _rejection(jobId, 0));
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.NodesNotAscending.selector, 1));
        market.refundRejected(terms, 3, new bytes32[](2), signatures);
    }

    function test_settle__signaturesInAnotherOrder__refuses() public {
        IJobEscrow.Terms memory terms = _terms(3, 2, 0, 0);
        _fund(terms);
        IJobEscrow.Result memory r = _result(3, 7, 0);
        bytes[] memory signatures = _attest(terms, r, 3);
        (signatures[0], signatures[1]) = (signatures[1], signatures[0]);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.BadSignature.selector, 0, vm.addr(keys[0])));
        market.settle(terms, r, 3, signatures);
    }

    function _forged(IJobEscrow.Terms memory terms, IJobEscrow.Result memory r, bytes memory signature) private {
        bytes[] memory signatures = new bytes[](1);
        signatures[0] = signature;
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.BadSignature.selector, 0, _lineAt(terms, 0).node));
        market.settle(terms, r, 1, signatures);
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
        r = _result(1, 1, 5);
        r.outcomes[0] -= 1 << 40; // a millionth of epsilon less than was charged
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
        _replace(terms, 0, _line(id));
        bytes32 jobId = _create(terms);
        bytes[] memory signatures = new bytes[](1);
        signatures[0] = _sign(77, _acceptance(jobId));
        market.accept(terms, 1, signatures);
        IJobEscrow.Result memory r = _result(1, 1, 0);
        _forged(terms, r, _sign(78, _attestation(jobId, r)));
        signatures[0] = _sign(77, _attestation(jobId, r));
        market.settle(terms, r, 1, signatures);
        vm.assertTrue(market.job(jobId).status == IJobEscrow.Status.Settled, "settled");
    }

    function test_settle__keyRotatedAfterAcceptance__theOldKeyStillCounts() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        bytes32 jobId = _fund(terms);
        vm.prank(HOSPITAL);
        registry.setNode(1, ANYONE);
        _settle(terms, _result(1, 1, 0), 1);
        vm.assertTrue(market.job(jobId).status == IJobEscrow.Status.Settled, "settled");
    }

    function test_settle__outcomesOfAnotherLength__refuses() public {
        IJobEscrow.Terms memory terms = _terms(2, 1, 0, 0);
        _fund(terms);
        _settleRefused(terms, _result(1, 1, 0), 1, abi.encodeWithSelector(IJobEscrow.BadOutcomes.selector, 1, 2));
        _settleRefused(terms, _result(3, 3, 0), 1, abi.encodeWithSelector(IJobEscrow.BadOutcomes.selector, 3, 2));
    }

    function test_settle__payForADatasetThatDidNotWork__refuses() public {
        IJobEscrow.Terms memory terms = _terms(2, 1, 10, 0);
        _capCompute(terms, 1, 10);
        _fund(terms);
        IJobEscrow.Result memory r = _result(2, 1, 0);
        r.outcomes[1] = _outcome(0, 1);
        _settleRefused(terms, r, 1, abi.encodeWithSelector(IJobEscrow.PayWithoutWork.selector, 1));
        r.outcomes[1] = _outcome(1, 0);
        _settleRefused(terms, r, 1, abi.encodeWithSelector(IJobEscrow.PayWithoutWork.selector, 1));
        r.outcomes[1] = _outcome(0, 0); // charged in privacy, though not paid: it dropped out after some rounds
        _settle(terms, r, 1);
    }

    function test_settle__rewardsAboveThePool__refuses() public {
        IJobEscrow.Terms memory terms = _terms(2, 1, 10, 0);
        _fund(terms);
        _settleRefused(
            terms, _result(2, 3, 6), 1, abi.encodeWithSelector(IJobEscrow.RewardsExceedPool.selector, 12, 10)
        );
        // the sum must not wrap around 88 bits either
        IJobEscrow.Result memory r = _result(2, 3, type(uint88).max);
        _settleRefused(
            terms,
            r,
            1,
            abi.encodeWithSelector(IJobEscrow.RewardsExceedPool.selector, 2 * uint256(type(uint88).max), 10)
        );
    }

    function test_settle__meteredCompute__isTheHospitalsOwnAndTheRestOfTheCapGoesBack() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        _capCompute(terms, 0, 600);
        _fund(terms);
        IJobEscrow.Result memory r = _result(1, 1, 0);
        r.outcomes[0] = _outcome(601, 0);
        _settleRefused(terms, r, 1, abi.encodeWithSelector(IJobEscrow.ComputeAboveCap.selector, 0, 601, 600));
        r.outcomes[0] = _outcome(450, 0);
        _settle(terms, r, 1);
        vm.assertEq(market.epoch(1, 1).creditedUnits, uint256(1_000_003) * 3 / 10, "contributors share the price only");
        vm.assertEq(
            market.pool(1).hospitalUnits, 1_000_003 - uint256(1_000_003) * 3 / 10 + 450, "the hospital has its compute"
        );
        vm.assertEq(money.balanceOf(BUYER), 150, "the rest of the cap");
    }

    function test_settle__linesAboveTheAmount__refusesAndTheDeadlineStillRefunds() public {
        IJobEscrow.Terms memory terms = _terms(2, 1, 0, 0);
        terms.amountUnits -= 1;
        _fund(terms);
        _settleRefused(
            terms,
            _result(2, 3, 0),
            3,
            abi.encodeWithSelector(IJobEscrow.PaymentsExceedAmount.selector, 3 * 1_000_003, 3 * 1_000_003 - 1)
        );
        vm.warp(terms.deadline + 1);
        market.refund(terms);
        vm.assertEq(money.balanceOf(BUYER), terms.amountUnits, "all of it");
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
        market = new Market(registry, token, HUB, GUARDIAN, BOND);
        registry.allowMarket(address(market), true);
        vm.prank(HOSPITAL);
        registry.setState(1, IDatasetRegistry.State.Paused);
        vm.prank(HOSPITAL);
        registry.setMarket(1, address(market));
        vm.prank(HOSPITAL);
        registry.setState(1, IDatasetRegistry.State.Active);
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
        bytes[] memory signatures = _attest(terms, r, type(uint64).max);
        uint256 before = gasleft();
        market.settle(terms, r, type(uint64).max, signatures);
        vm.assertLe(before - gasleft(), 10_000_000, "gas; a transaction may use 16.7 million (EIP-7825)");
    }

    function testFuzz_settle__anyWorkRewardsAndCompute__creditsPlusFeePlusChangeIsTheAmount(
        uint256 worked,
        uint88[3] memory rewards,
        uint88[3] memory compute,
        uint88 pool,
        uint256 fee,
        uint8 vouchers
    ) public {
        IJobEscrow.Terms memory terms = _terms(3, 1, pool, 0);
        for (uint256 i = 0; i < 3; ++i) {
            if (vouchers >> i & 1 == 1) _payByVoucher(terms, i);
            _capCompute(terms, i, compute[i]);
        }
        terms.feeUnits = uint96(bound(fee, 0, _amount(terms) / 20)); // below 5 % of the sum that includes it
        terms.amountUnits = uint96(_amount(terms));
        _fund(terms);
        IJobEscrow.Result memory r = _result(3, uint64(bound(worked, 1, 7)), 0);
        uint256 left = pool;
        for (uint256 i = 0; i < 3; ++i) {
            if (r.worked >> i & 1 == 0) continue;
            uint88 reward = uint88(bound(rewards[i], 0, left));
            r.outcomes[i] = _outcome(uint88(bound(rewards[i], 0, compute[i])), reward);
            left -= reward;
        }
        _settle(terms, r, r.worked);
        uint256 paid = 0;
        for (uint256 i = 0; i < 3; ++i) {
            uint256 earned = market.pool(i + 1).hospitalUnits + market.epoch(i + 1, 1).creditedUnits;
            bool didWork = r.worked >> i & 1 == 1;
            uint256 due = _rewardOf(r, i) + (r.outcomes[i] >> 168) + _lineAt(terms, i).priceUnits;
            vm.assertEq(earned, didWork ? due : 0, "earned");
            vm.assertEq(
                _datatoken(i + 1).balanceOf(BUYER), _paidByVoucher(terms, i) && !didWork ? ONE_JOB : 0, "voucher"
            );
            vm.assertEq(_datatoken(i + 1).balanceOf(address(market)), 0, "no voucher stays");
            paid += earned;
        }
        vm.assertEq(paid + market.credit(HUB) + money.balanceOf(BUYER), terms.amountUnits, "no unit lost");
        vm.assertEq(money.balanceOf(address(market)), paid + market.credit(HUB), "all backed");
    }

    // ---- dispute

    function _proposed(uint96 bond, uint16 silentBps) private returns (IJobEscrow.Terms memory terms, IJobEscrow.Result memory r) {
        terms = _terms(2, 1, 101, 99);
        _arbitrate(terms, 3 days, bond, silentBps);
        _capCompute(terms, 0, 1_000);
        _fund(terms);
        r = _result(2, 3, 50);
        r.outcomes[0] = _outcome(777, 51);
        _settle(terms, r, 1);
    }

    function _dispute(IJobEscrow.Terms memory terms, IJobEscrow.Result memory r, address who) private {
        money.mint(who, terms.bondUnits);
        vm.prank(who);
        money.approve(address(market), type(uint256).max);
        vm.prank(who);
        market.dispute(terms, r);
    }

    function _earned(uint256 id) private view returns (uint256) {
        return market.pool(id).hospitalUnits + market.epoch(id, 1).creditedUnits;
    }

    function test_finalize__afterTheWindow__paysWhatWasAttested() public {
        (IJobEscrow.Terms memory terms, IJobEscrow.Result memory r) = _proposed(10, 0);
        bytes32 jobId = market.hashTerms(terms);
        vm.assertTrue(market.job(jobId).status == IJobEscrow.Status.Proposed, "proposed");
        vm.assertEq(_earned(1) + _earned(2) + market.credit(HUB), 0, "nothing is paid yet");
        uint256 until = vm.getBlockTimestamp() + 3 days;
        vm.warp(until);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.WindowOpen.selector, until, until));
        market.finalize(terms, r);
        vm.warp(until + 1);
        r.modelHash = keccak256("another");
        vm.expectRevert(
            abi.encodeWithSelector(
                IJobEscrow.OtherResult.selector, keccak256(abi.encode(r)), market.proposal(jobId)
            )
        );
        market.finalize(terms, r);
        r.modelHash = keccak256("model");
        vm.prank(ANYONE);
        market.finalize(terms, r);
        vm.assertEq(_earned(1), 1_000_003 + 777 + 51, "first");
        vm.assertEq(_earned(2), 2 * 1_000_003 + 50, "second");
        vm.assertEq(market.credit(HUB), 99, "fee");
        vm.assertEq(money.balanceOf(BUYER), 223, "change");
        vm.assertEq(uint256(market.proposal(jobId)), 0, "forgotten");
        vm.expectRevert(_wrongStatus(terms, IJobEscrow.Status.Settled));
        market.finalize(terms, r);
    }

    function test_finalize__jobOnlyFunded__refuses() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        _fund(terms);
        vm.expectRevert(_wrongStatus(terms, IJobEscrow.Status.Funded));
        market.finalize(terms, _result(1, 1, 0));
    }

    function test_refund__proposedOrDisputed__refusesEvenAfterTheDeadline() public {
        (IJobEscrow.Terms memory terms, IJobEscrow.Result memory r) = _proposed(10, 0);
        vm.warp(terms.deadline + 1);
        vm.expectRevert(_wrongStatus(terms, IJobEscrow.Status.Proposed));
        market.refund(terms);
        _dispute(terms, r, BUYER);
        vm.expectRevert(_wrongStatus(terms, IJobEscrow.Status.Disputed));
        market.refund(terms);
    }

    function test_dispute__afterTheWindowOrByAStrangerOrOfAnotherResult__refuses() public {
        (IJobEscrow.Terms memory terms, IJobEscrow.Result memory r) = _proposed(10, 0);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.NotParty.selector, ANYONE));
        vm.prank(ANYONE);
        market.dispute(terms, r);
        IJobEscrow.Result memory other = _result(2, 1, 0);
        bytes32 attested = market.proposal(market.hashTerms(terms));
        vm.expectRevert(
            abi.encodeWithSelector(IJobEscrow.OtherResult.selector, keccak256(abi.encode(other)), attested)
        );
        vm.prank(BUYER);
        market.dispute(terms, other);
        uint256 until = vm.getBlockTimestamp() + 3 days;
        vm.warp(until + 1);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.WindowClosed.selector, until, until + 1));
        vm.prank(BUYER);
        market.dispute(terms, r);
    }

    function test_dispute__twice__refuses() public {
        (IJobEscrow.Terms memory terms, IJobEscrow.Result memory r) = _proposed(10, 0);
        _dispute(terms, r, BUYER);
        vm.expectRevert(_wrongStatus(terms, IJobEscrow.Status.Disputed));
        vm.prank(BUYER);
        market.dispute(terms, r);
    }

    function test_rule__notTheArbiterOrTooMuchOrTooLate__refuses() public {
        (IJobEscrow.Terms memory terms, IJobEscrow.Result memory r) = _proposed(10, 0);
        vm.expectRevert(_wrongStatus(terms, IJobEscrow.Status.Proposed));
        vm.prank(ARBITER);
        market.rule(terms, r, 0);
        _dispute(terms, r, BUYER);
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.NotArbiter.selector, ARBITER, BUYER));
        vm.prank(BUYER);
        market.rule(terms, r, 0);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.BadRuling.selector, 10_001));
        vm.prank(ARBITER);
        market.rule(terms, r, 10_001);
        uint256 until = vm.getBlockTimestamp() + 14 days;
        vm.warp(until + 1);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.WindowClosed.selector, until, until + 1));
        vm.prank(ARBITER);
        market.rule(terms, r, 0);
        r.reportHash = 0;
        vm.warp(until);
        bytes32 attested = market.proposal(market.hashTerms(terms));
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.OtherResult.selector, keccak256(abi.encode(r)), attested));
        vm.prank(ARBITER);
        market.rule(terms, r, 0);
    }

    function test_rule__forTheBuyer__everythingBackWithTheBond() public {
        (IJobEscrow.Terms memory terms, IJobEscrow.Result memory r) = _proposed(10, 0);
        _dispute(terms, r, BUYER);
        vm.prank(ARBITER);
        market.rule(terms, r, 0);
        vm.assertEq(money.balanceOf(BUYER), terms.amountUnits + 10, "all of it");
        vm.assertEq(market.credit(HUB), 0, "no fee for nothing");
        vm.assertEq(market.standing(1).disputed, 1, "disputed");
        vm.assertEq(market.standing(1).lost, 1, "lost");
        vm.assertTrue(market.proposal(market.hashTerms(terms)) == 0, "and nothing is proposed any more");
    }

    function test_rule__againstTheBuyer__theBondGoesToThoseWhoWorked() public {
        (IJobEscrow.Terms memory terms, IJobEscrow.Result memory r) = _proposed(11, 0);
        _dispute(terms, r, BUYER);
        vm.prank(ARBITER);
        market.rule(terms, r, 10_000);
        vm.assertEq(_earned(1), 1_000_003 + 777 + 51 + 6, "first, with what division leaves");
        vm.assertEq(_earned(2), 2 * 1_000_003 + 50 + 5, "second");
        vm.assertEq(money.balanceOf(BUYER), 223, "change only");
        vm.assertEq(market.standing(2).disputed, 1, "disputed");
        vm.assertEq(market.standing(2).lost, 0, "not lost");
    }

    function test_rule__againstANode__theBondGoesToTheBuyer() public {
        (IJobEscrow.Terms memory terms, IJobEscrow.Result memory r) = _proposed(10, 0);
        _dispute(terms, r, vm.addr(keys[1]));
        vm.prank(ARBITER);
        market.rule(terms, r, 10_000);
        vm.assertEq(money.balanceOf(BUYER), 223 + 10, "change and bond");
    }

    function test_finalize__silentArbiter__paysTheAgreedPartAndTheBondGoesBack() public {
        (IJobEscrow.Terms memory terms, IJobEscrow.Result memory r) = _proposed(10, 5_000);
        _dispute(terms, r, BUYER);
        uint256 until = vm.getBlockTimestamp() + 14 days;
        vm.warp(until);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.WindowOpen.selector, until, until));
        market.finalize(terms, r);
        vm.warp(until + 1);
        money.setBlocked(BUYER, true); // who is blocklisted cannot hold the others up
        market.finalize(terms, r);
        vm.assertEq(_earned(1), uint256(1_000_003 + 51) / 2 + uint256(777) / 2, "half, rounded down");
        vm.assertEq(_earned(2), uint256(2 * 1_000_003 + 50) / 2, "half");
        vm.assertEq(market.credit(HUB), 49, "half of the fee");
        vm.assertEq(
            market.credit(BUYER), terms.amountUnits - _earned(1) - _earned(2) - 49 + 10, "the rest and the bond wait"
        );
        vm.assertEq(market.standing(1).lost, 0, "silence judges nobody");
    }

    function testFuzz_rule__anyPart__noUnitIsMadeOrLost(uint256 bps, bool byNode, uint88 reward, uint96 bond) public {
        IJobEscrow.Terms memory terms = _terms(2, 1, reward, 0);
        _arbitrate(terms, 1 days, bond, 0);
        terms.vouchers = 0;
        _payByVoucher(terms, 1);
        _fund(terms);
        IJobEscrow.Result memory r = _result(2, 3, reward / 2);
        _settle(terms, r, 3);
        address who = byNode ? vm.addr(keys[0]) : BUYER;
        _dispute(terms, r, who);
        bps = bound(bps, 0, 10_000);
        vm.prank(ARBITER);
        market.rule(terms, r, bps);
        uint256 outside = money.balanceOf(BUYER) + money.balanceOf(vm.addr(keys[0]));
        vm.assertEq(_earned(1) + _earned(2) + outside, uint256(terms.amountUnits) + bond, "conserved");
        vm.assertEq(money.balanceOf(address(market)), _earned(1) + _earned(2), "backed");
        vm.assertEq(_datatoken(2).balanceOf(BUYER), bps == 0 ? ONE_JOB : 0, "voucher back only if nothing is paid");
    }

    // ---- standing

    function test_standing__acceptedAndNotDone__countsAsFailed() public {
        IJobEscrow.Terms memory terms = _terms(3, 1, 0, 0);
        _create(terms);
        _accept(terms, 3);
        _settle(terms, _result(3, 1, 0), 1);
        vm.assertEq(market.standing(1).settled, 1, "did its work");
        vm.assertEq(market.standing(2).failed, 1, "promised and did not");
        vm.assertEq(market.standing(3).failed, 0, "never promised");
        terms.specHash = keccak256("next");
        _create(terms);
        _accept(terms, 1);
        vm.warp(terms.deadline + 1);
        market.refund(terms);
        vm.assertEq(market.standing(1).failed, 1, "let the deadline pass");
        vm.assertEq(market.standing(1).accepted, 2, "both");
    }

    // ---- refund

    function test_refund__afterTheDeadline__givesBackEveryUnitAndVoucher() public {
        IJobEscrow.Terms memory terms = _terms(3, 2, 50, 5);
        _payByVoucher(terms, 2);
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

    function test_settle__poolThatCannotHoldMore__refusesAndTheBuyerGetsItBack() public {
        uint256 full = _list(vm.addr(keys[0]), 7, 0);
        money.mint(ANYONE, type(uint96).max);
        vm.prank(ANYONE);
        money.approve(address(market), type(uint256).max);
        vm.prank(ANYONE);
        market.payRevenue(full, type(uint96).max - 6);
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        _replace(terms, 0, _line(full));
        _fund(terms);
        _settleRefused(terms, _result(1, 1, 0), 1, abi.encodeWithSelector(IRevenuePools.PoolFull.selector, full));
        vm.warp(terms.deadline + 1);
        market.refund(terms);
        vm.assertEq(money.balanceOf(BUYER), 7, "back");
    }

    // ---- refundRejected

    function test_refundRejected__aRefusalByNobody__refuses() public {
        IJobEscrow.Terms memory terms = _terms(2, 2, 0, 0);
        _fund(terms);
        // the fifth line does not exist; an empty signature must not stand for the key of nobody
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.BadSignature.selector, 2, address(0)));
        market.refundRejected(terms, 16, new bytes32[](1), new bytes[](1));
    }

    function test_settle__fewerSignaturesThanBits__refuses() public {
        IJobEscrow.Terms memory terms = _terms(2, 1, 0, 0);
        _fund(terms);
        IJobEscrow.Result memory r = _result(2, 3, 0);
        bytes[] memory signatures = _attest(terms, r, 1);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.QuorumNotMet.selector, 1, 1));
        market.settle(terms, r, 3, signatures);
    }

    function test_accept__fewerSignaturesThanBits__refuses() public {
        IJobEscrow.Terms memory terms = _terms(2, 2, 0, 0);
        bytes32 jobId = _create(terms);
        _acceptRefused(
            terms, 3, _signedBy(1, _acceptance(jobId)), abi.encodeWithSelector(IJobEscrow.QuorumNotMet.selector, 1, 2)
        );
    }

    function _reject(IJobEscrow.Terms memory terms, uint64 who)
        private
        view
        returns (bytes32[] memory reasons, bytes[] memory signatures)
    {
        uint256[] memory indices = _indices(who);
        reasons = new bytes32[](indices.length);
        signatures = new bytes[](indices.length);
        for (uint256 k = 0; k < indices.length; ++k) {
            reasons[k] = keccak256(abi.encode("epsilon left is too small", k));
            signatures[k] = _sign(keys[indices[k]], _rejection(market.hashTerms(terms), reasons[k]));
        }
    }

    function test_refundRejected__quorumOutOfReach__refundsBeforeTheDeadline() public {
        IJobEscrow.Terms memory terms = _terms(3, 2, 0, 0);
        bytes32 jobId = _fund(terms);
        uint64 s = 5;
        (bytes32[] memory reasons, bytes[] memory signatures) = _reject(terms, s);
        vm.prank(ANYONE);
        market.refundRejected(terms, s, reasons, signatures);
        vm.assertTrue(market.job(jobId).status == IJobEscrow.Status.Refunded, "refunded");
        vm.assertEq(money.balanceOf(BUYER), _amount(terms), "units");
    }

    function test_refundRejected__quorumStillInReach__refuses() public {
        IJobEscrow.Terms memory terms = _terms(3, 2, 0, 0); // one refusal of three leaves two
        _fund(terms);
        uint64 s = 2;
        (bytes32[] memory reasons, bytes[] memory signatures) = _reject(terms, s);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.QuorumNotMet.selector, 1, 2));
        market.refundRejected(terms, s, reasons, signatures);
    }

    function test_refundRejected__listsOfDifferentLength__refuses() public {
        IJobEscrow.Terms memory terms = _terms(3, 2, 0, 0);
        _fund(terms);
        uint64 s = 3;
        (bytes32[] memory reasons, bytes[] memory signatures) = _reject(terms, s);
        bytes memory refusal = abi.encodeWithSelector(IJobEscrow.QuorumNotMet.selector, 2, 2);
        vm.expectRevert(refusal);
        market.refundRejected(terms, s, new bytes32[](1), signatures);
        vm.expectRevert(refusal);
        market.refundRejected(terms, s, reasons, new bytes[](1));
    }

    function test_refundRejected__afterAccepting__countsAsFailed() public {
        IJobEscrow.Terms memory terms = _terms(3, 3, 0, 0);
        _fund(terms);
        (bytes32[] memory reasons, bytes[] memory signatures) = _reject(terms, 2);
        market.refundRejected(terms, 2, reasons, signatures);
        vm.assertEq(market.standing(2).failed, 1, "took its word back");
        vm.assertEq(market.standing(1).failed + market.standing(3).failed, 0, "the others are not to blame");
    }

    function test_refundRejected__refusalForAnotherReasonOrByAStranger__refuses() public {
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        bytes32 jobId = _fund(terms);
        uint64 s = 1;
        (bytes32[] memory reasons, bytes[] memory signatures) = _reject(terms, s);
        bytes memory refusal = abi.encodeWithSelector(IJobEscrow.BadSignature.selector, 0, _lineAt(terms, 0).node);
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
        uint64 s = 1;
        (bytes32[] memory reasons, bytes[] memory signatures) = _reject(terms, s);
        vm.expectRevert(_wrongStatus(terms, IJobEscrow.Status.Settled));
        market.refundRejected(terms, s, reasons, signatures);
    }

    function testFuzz_refundRejected__anyRefusals__endsTheJobExactlyWhenTheQuorumIsOutOfReach(uint256 who, uint256 q)
        public
    {
        IJobEscrow.Terms memory terms = _terms(3, uint16(bound(q, 1, 3)), 0, 0);
        bytes32 jobId = _fund(terms);
        uint64 s = uint64(bound(who, 0, 7));
        (bytes32[] memory reasons, bytes[] memory signatures) = _reject(terms, s);
        bool outOfReach = 3 - reasons.length < terms.quorum;
        if (!outOfReach) {
            vm.expectRevert(abi.encodeWithSelector(IJobEscrow.QuorumNotMet.selector, reasons.length, 4 - terms.quorum));
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
        vm.expectRevert(abi.encodeWithSelector(IRevenuePools.NothingToWithdraw.selector, HUB));
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
