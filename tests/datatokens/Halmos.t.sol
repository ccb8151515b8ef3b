// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IJobEscrow} from "@bank/interfaces/IJobEscrow.sol";
import {Bank} from "./Bank.sol";
import {BlocklistToken} from "./Tokens.sol";
import {vm} from "./Vm.sol";

/// @dev Proofs, by halmos (`make halmos`), for every clock that a block can have. forge does not run them: their names
///      do not start with `test`.
contract EscrowTimeProofs is Bank {
    IJobEscrow.Terms private _job;
    IJobEscrow.Result private _done;

    function setUp() public {
        _open(address(new BlocklistToken()), 1);
        _job = _terms(1, 1, 0, 0);
        _create(_job);
        _done = _result(1, 1, 0);
    }

    /// @dev Anybody gets the buyer's money back, exactly when the deadline has passed.
    function check_refund__exactlyAfterTheDeadline(uint40 when, address caller) public {
        vm.warp(when);
        vm.prank(caller);
        (bool done,) = address(market).call(abi.encodeCall(market.refund, (_job)));
        assert(done == (when > _job.deadline));
        if (done) assert(money.balanceOf(BUYER) == _job.amountUnits);
    }

    /// @dev Whatever is attested, and by whomever, nothing is settled after the deadline.
    function check_settle__neverAfterTheDeadline(uint40 when, uint64 worked, uint64 signers, bytes32 model) public {
        vm.warp(when);
        IJobEscrow.Result memory result = _done;
        (result.worked, result.modelHash) = (worked, model);
        bytes[] memory signatures = new bytes[](1);
        signatures[0] = new bytes(64);
        (bool done,) = address(market).call(abi.encodeCall(market.settle, (_job, result, signers, signatures)));
        assert(!done || when <= _job.deadline);
    }

    /// @dev Nobody accepts after the deadline.
    function check_accept__neverAfterTheDeadline(uint40 when, uint64 signers) public {
        vm.warp(when);
        bytes[] memory signatures = new bytes[](1);
        signatures[0] = new bytes(64);
        (bool done,) = address(market).call(abi.encodeCall(market.accept, (_job, signers, signatures)));
        assert(!done || when <= _job.deadline);
    }

    /// @dev A job has a deadline 10 minutes to 365 days ahead, whatever its terms say. (At second 0 all is paused.)
    function check_create__deadlineWithinBounds(uint40 when, uint40 deadline) public {
        if (when == 0) return;
        vm.warp(when);
        IJobEscrow.Terms memory terms = _job;
        (terms.deadline, terms.specHash) = (deadline, keccak256("another"));
        money.mint(BUYER, terms.amountUnits);
        vm.prank(BUYER);
        (bool done,) = address(market).call(abi.encodeCall(market.createJob, (terms)));
        assert(done == (deadline >= uint256(when) + 10 minutes && deadline <= uint256(when) + 365 days));
    }
}

/// @dev A job that was attested and waits for its dispute window.
contract WindowProofs is Bank {
    IJobEscrow.Terms private _job;
    IJobEscrow.Result private _done;
    uint256 private _until;

    function setUp() public {
        _open(address(new BlocklistToken()), 1);
        IJobEscrow.Terms memory terms = _terms(1, 1, 0, 0);
        _arbitrate(terms, 1 days, 7, 5_000);
        _job = terms;
        bytes32 jobId = _fund(terms);
        IJobEscrow.Result memory result = _result(1, 1, 0);
        _done = result;
        _settle(terms, result, 1);
        _until = market.job(jobId).until;
        money.mint(BUYER, 7);
    }

    /// @dev The payment waits for the whole window, and then anybody can make it.
    function check_finalize__exactlyAfterTheWindow(uint40 when, address caller) public {
        vm.warp(when);
        vm.prank(caller);
        (bool done,) = address(market).call(abi.encodeCall(market.finalize, (_job, _done)));
        assert(done == (when > _until));
    }

    /// @dev The buyer can dispute within the window and never after it.
    function check_dispute__exactlyWithinTheWindow(uint40 when) public {
        vm.warp(when);
        vm.prank(BUYER);
        (bool done,) = address(market).call(abi.encodeCall(market.dispute, (_job, _done)));
        assert(done == (when <= _until));
    }

    /// @dev What is attested is not refunded, however late.
    function check_refund__neverOnceAttested(uint40 when) public {
        vm.warp(when);
        (bool done,) = address(market).call(abi.encodeCall(market.refund, (_job)));
        assert(!done);
    }
}
