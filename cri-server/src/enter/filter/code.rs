//! An assembler of classic BPF. A program is written from its end to its start, so that the targets of all jumps are
//! known when the jumps are written, and every instruction says what comes after it.

use libc::{BPF_ABS, BPF_JA, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, sock_filter};

/// Offset of the call's number in the kernel's `seccomp_data`.
pub(super) const NUMBER: u32 = 0;
/// Offset of its architecture.
pub(super) const ARCH: u32 = 4;
/// Offset of its arguments, 8 bytes each, the low word first: both machines are little-endian.
pub(super) const ARGUMENTS: u32 = 16;

/// How far back a target may be for a conditional jump, with room for one instruction between.
const REACH: usize = 255;

/// An instruction that is written, counted from the end of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Label(usize);

/// Where a conditional jump goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Exits {
    pub(super) yes: Label,
    pub(super) no: Label,
}

impl Exits {
    pub(super) fn swapped(self) -> Self {
        Self { yes: self.no, no: self.yes }
    }
}

/// A program in the making.
#[derive(Debug, Default)]
pub(super) struct Code {
    /// The last instruction first.
    reversed: Vec<sock_filter>,
}

impl Code {
    /// Ends with a verdict: a new instruction, or one in reach that does the same.
    pub(super) fn ret(&mut self, verdict: u32) -> Label {
        let near = self.reversed.len().saturating_sub(REACH)..self.reversed.len();
        let same = |index: &usize| self.verdict(Label(*index)) == Some(verdict);
        match near.rev().find(same) {
            Some(index) => Label(index),
            None => self.put(BPF_RET | BPF_K, verdict),
        }
    }

    /// Loads a word of the call's data.
    pub(super) fn load(&mut self, offset: u32, next: Label) -> Label {
        self.step(BPF_LD | BPF_W | BPF_ABS, offset, next)
    }

    /// Does something that is neither a jump nor an end.
    pub(super) fn step(&mut self, operation: u32, operand: u32, next: Label) -> Label {
        if next.0 + 1 != self.reversed.len() {
            self.hop(next);
        }
        self.put(operation, operand)
    }

    /// Compares what is loaded with `operand`; `comparison` is `BPF_JEQ`, `BPF_JGT` or `BPF_JGE`.
    pub(super) fn branch(&mut self, comparison: u32, operand: u32, exits: Exits) -> Label {
        let exits = Exits { yes: self.near(exits.yes), no: self.near(exits.no) };
        let (jt, jf) = (self.distance(exits.yes), self.distance(exits.no));
        let label = self.put(BPF_JMP | BPF_K | comparison, operand);
        let jump = &mut self.reversed[label.0];
        (jump.jt, jump.jf) = (jt as u8, jf as u8); // `near` keeps both below 256.
        label
    }

    /// The program in the order of execution.
    pub(super) fn finish(mut self) -> Vec<sock_filter> {
        self.reversed.reverse();
        self.reversed
    }

    /// The target, or something that leads to it and is in reach of a conditional jump.
    fn near(&mut self, target: Label) -> Label {
        match self.verdict(target) {
            _ if self.reversed.len() - target.0 <= REACH => target,
            Some(verdict) => self.ret(verdict),
            None => self.hop(target),
        }
    }

    /// Leads to the target from the place before the last instruction.
    fn hop(&mut self, target: Label) -> Label {
        match self.verdict(target) {
            Some(verdict) => self.put(BPF_RET | BPF_K, verdict),
            None => self.put(BPF_JMP | BPF_JA, self.distance(target)),
        }
    }

    fn verdict(&self, label: Label) -> Option<u32> {
        let instruction = self.reversed[label.0];
        (u32::from(instruction.code) == BPF_RET | BPF_K).then_some(instruction.k)
    }

    /// Instructions between the next that is written and the target.
    fn distance(&self, target: Label) -> u32 {
        (self.reversed.len() - target.0 - 1) as u32
    }

    fn put(&mut self, operation: u32, operand: u32) -> Label {
        self.reversed.push(sock_filter { code: operation as u16, jt: 0, jf: 0, k: operand });
        Label(self.reversed.len() - 1)
    }
}
