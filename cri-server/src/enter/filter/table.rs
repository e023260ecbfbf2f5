//! What is decided on each call of an architecture: intervals of numbers, found by binary search.

use std::collections::BTreeMap;

use libc::{BPF_ALU, BPF_AND, BPF_JEQ, BPF_JGE, BPF_JGT, BPF_K};

use super::abi::{Abi, Width, X32_BIT};
use super::code::{ARGUMENTS, Code, Exits, Label, NUMBER};
use super::rules::{Condition, Expect, Rule, Rules, Test, Verdict};

/// What seccomp shows for a call that a tracer has skipped. It is no call of x32, though it has the bit.
const SKIPPED: u32 = u32::MAX;

/// The decisions on an architecture's calls.
#[derive(Debug)]
pub(super) struct Table {
    /// `AUDIT_ARCH_*`.
    pub(super) audit: u32,
    default: Verdict,
    /// From which number on what is decided. Begins with number 0.
    intervals: Vec<(u32, Decision)>,
}

/// How a call is judged.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Decision {
    /// Whatever its arguments.
    Always(Verdict),
    /// By the first of these that holds, looking at so much of the arguments.
    FirstOf(Vec<Rule>, Width),
}

impl Table {
    /// Joins what the `abis` with the audit number decide.
    pub(super) fn new(audit: u32, abis: &[Abi], rules: &Rules<'_>) -> Self {
        let default = rules.default;
        let mut decisions = BTreeMap::new();
        for abi in abis.iter().filter(|abi| abi.audit() == audit) {
            let by_number = by_number(*abi, rules).into_iter();
            decisions.extend(by_number.map(|(number, rules)| (number, Decision::of(rules, abi.width()))));
        }
        let mut table = Self { audit, default, intervals: vec![(0, Decision::Always(default))] };
        for (number, decision) in decisions {
            table.begin(number, decision);
            table.begin(number + 1, Decision::Always(default));
        }
        if audit == Abi::X32.audit() && !abis.contains(&Abi::X32) {
            table.begin(X32_BIT, Decision::Always(libc::SECCOMP_RET_KILL_THREAD));
            table.begin(SKIPPED, Decision::Always(default));
        }
        table
    }

    /// What is decided from this number on; no number is below those before.
    fn begin(&mut self, number: u32, decision: Decision) {
        self.intervals.pop_if(|(last, _)| *last == number);
        if self.intervals.last().is_none_or(|(_, last)| *last != decision) {
            self.intervals.push((number, decision));
        }
    }

    /// Writes the judgement of a call of this architecture.
    pub(super) fn emit(&self, code: &mut Code) -> Label {
        let judge = self.search(code, &self.intervals);
        code.load(NUMBER, judge)
    }

    fn search(&self, code: &mut Code, intervals: &[(u32, Decision)]) -> Label {
        if let [(_, decision)] = intervals {
            return self.decide(code, decision);
        }
        let (low, high) = intervals.split_at(intervals.len() / 2);
        let (yes, no) = (self.search(code, high), self.search(code, low));
        code.branch(BPF_JGE, high[0].0, Exits { yes, no })
    }

    fn decide(&self, code: &mut Code, decision: &Decision) -> Label {
        match decision {
            Decision::Always(verdict) => code.ret(*verdict),
            Decision::FirstOf(rules, width) => {
                let default = code.ret(self.default);
                rules.iter().rev().fold(default, |no, rule| rule_or(code, rule, *width, no))
            }
        }
    }
}

impl Decision {
    fn of(mut rules: Vec<Rule>, width: Width) -> Self {
        if let Some(rule) = rules.iter().find(|rule| rule.conditions.is_empty()) {
            return Self::Always(rule.verdict);
        }
        rules.sort_by_key(Rule::mildness);
        Self::FirstOf(rules, width)
    }
}

/// The rules for each number, in their order, whatever names it has and whatever calls are made through it.
fn by_number(abi: Abi, rules: &Rules<'_>) -> BTreeMap<u32, Vec<Rule>> {
    let entries = abi.entries();
    let mut by_number: BTreeMap<u32, Vec<Rule>> = BTreeMap::new();
    for (name, rule) in rules.named() {
        for entry in entries.get(name).into_iter().flatten() {
            let rule = entry.selector.map_or_else(|| rule.clone(), |selector| rule.selected_by(selector));
            let rules = by_number.entry(entry.number).or_default();
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
    }
    by_number
}

/// The rule's verdict if its conditions hold, else what is at `no`.
fn rule_or(code: &mut Code, rule: &Rule, width: Width, no: Label) -> Label {
    let verdict = code.ret(rule.verdict);
    rule.conditions
        .iter()
        .rev()
        .fold(verdict, |yes, condition| holds(code, condition, width, Exits { yes, no }))
}

fn holds(code: &mut Code, condition: &Condition, width: Width, exits: Exits) -> Label {
    let exits = match condition.expect {
        Expect::Yes => exits,
        Expect::No => exits.swapped(),
    };
    let argument = ARGUMENTS + 8 * condition.index;
    match condition.test {
        Test::Equal { mask, value } => {
            let below = equal(code, argument, low(mask), low(value), exits);
            if width == Width::Word || high(mask) == 0 {
                return below;
            }
            equal(code, argument + 4, high(mask), high(value), Exits { yes: below, ..exits })
        }
        Test::AtLeast(value) | Test::Above(value) => {
            let order = if matches!(condition.test, Test::Above(_)) { BPF_JGT } else { BPF_JGE };
            let below = code.branch(order, low(value), exits);
            let below = code.load(argument, below);
            if width == Width::Word {
                return below;
            }
            let same = code.branch(BPF_JEQ, high(value), Exits { yes: below, ..exits });
            let above = code.branch(BPF_JGT, high(value), Exits { no: same, ..exits });
            code.load(argument + 4, above)
        }
    }
}

/// Whether a word is `value` in the bits of `mask`.
fn equal(code: &mut Code, offset: u32, mask: u32, value: u32, exits: Exits) -> Label {
    let mut next = code.branch(BPF_JEQ, value, exits);
    if mask != u32::MAX {
        next = code.step(BPF_ALU | BPF_AND | BPF_K, mask, next);
    }
    code.load(offset, next)
}

fn low(value: u64) -> u32 {
    value as u32
}

fn high(value: u64) -> u32 {
    (value >> 32) as u32
}
