// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @dev The part of forge's cheat codes that these tests use.
interface Vm {
    function addr(uint256 key) external pure returns (address);
    function sign(uint256 key, bytes32 digest) external pure returns (uint8 v, bytes32 r, bytes32 s);
    function prank(address sender) external;
    function warp(uint256 timestamp) external;
    /// @dev The compiler takes block.timestamp for constant within a call, and so may read it before or after a warp.
    function getBlockTimestamp() external view returns (uint256);
    function chainId(uint256 id) external;
    function expectRevert(bytes calldata data) external;
    function expectRevert() external;
    function assertEq(uint256 a, uint256 b, string calldata what) external pure;
    function assertLe(uint256 a, uint256 b, string calldata what) external pure;
    function assertTrue(bool yes, string calldata what) external pure;
}

Vm constant vm = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));

/// @dev `x` if it lies in [low, high], else folded into it: fuzzed numbers that mean something.
function bound(uint256 x, uint256 low, uint256 high) pure returns (uint256) {
    return x >= low && x <= high ? x : low + x % (high - low + 1);
}
