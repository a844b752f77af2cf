//! The rule by which one master's place passes to another, for both sides: what each does next, from what it hears and what
//! the operator wants. The acting is in `upgrade.rs` and `successor.rs`.
//!
//! One of them holds the zone at any time: [`Old`] until it has started the other, and again from
//! [`TakeZone`](OldStep::TakeZone) or [`RollBack`](OldStep::RollBack) on; [`New`] in between.

#![forbid(unsafe_code)]

/// The master that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Old {
    stage: Stage,
    /// Whether it ends as soon as the other serves.
    is_final: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The other does not serve yet.
    Starting,
    /// Both serve.
    Both,
    /// The other is to go; our workers come back first.
    Returning,
    /// The other was told to go.
    Ending,
    /// The other goes on alone.
    Left,
}

/// What the master that is there hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OldEvent {
    /// The other says that it serves.
    Serves,
    /// The other says that it has given the zone back.
    GaveBack,
    /// The other says that nothing comes of it, or has ended.
    Failed,
    /// Our workers do not come back.
    Stuck,
    /// Every seat has a worker of ours again.
    AllServe,
    /// The operator wants the former binary (SIGHUP).
    Return,
    /// The operator ends this master. By then the other may have written its pid, and its word be on its way.
    Quit {
        /// Whether it has.
        is_replaced: bool,
    },
}

/// What the master that is there does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OldStep {
    /// Nothing.
    Wait,
    /// Tells the operator that both serve.
    Announce,
    /// Hands connections over, says so and ends; the other goes on.
    Leave,
    /// Asks for the zone.
    AskBack,
    /// Takes the zone, and starts workers where they are missing.
    TakeZone,
    /// Tells the other to end.
    SendEnd,
    /// Gives the zone to the other again, which goes on.
    GiveZone,
    /// Serves alone, as before.
    RollBack {
        /// Whether the zone has still to be taken.
        takes_zone: bool,
    },
    /// Refuses what the operator wants.
    Refuse,
}

impl Old {
    /// Another master was just started; the zone is its.
    pub(crate) fn new(is_final: bool) -> Old {
        Old { stage: Stage::Starting, is_final }
    }

    /// Whether this master ends as soon as the other serves.
    pub(crate) fn is_final(self) -> bool {
        self.is_final
    }

    /// Whether the operator has asked for the former binary.
    pub(crate) fn is_returning(self) -> bool {
        matches!(self.stage, Stage::Returning | Stage::Ending)
    }

    /// Whether the other was told to go.
    pub(crate) fn is_ending(self) -> bool {
        self.stage == Stage::Ending
    }

    /// Whether the other serves, and may go on doing so.
    pub(crate) fn both_serve(self) -> bool {
        self.stage == Stage::Both
    }

    /// What follows from an event. After [`OldStep::Leave`] nothing does; after [`OldStep::RollBack`] it is not asked.
    pub(crate) fn on(&mut self, event: OldEvent) -> OldStep {
        use OldEvent::{AllServe, Failed, GaveBack, Quit, Return, Serves, Stuck};
        use Stage::{Both, Ending, Left, Returning, Starting};
        let (stage, step) = match (self.stage, event) {
            (Starting, Serves) if self.is_final => (Left, OldStep::Leave),
            (Starting, Serves) => (Both, OldStep::Announce),
            (Starting, Quit { is_replaced: true }) | (Both, Quit { .. }) => (Left, OldStep::Leave),
            (Both, Return) => (Both, OldStep::AskBack),
            (Both, GaveBack) => (Returning, OldStep::TakeZone),
            (Returning, AllServe) => (Ending, OldStep::SendEnd),
            (Returning, Stuck) => (Both, OldStep::GiveZone),
            (Starting | Both, Failed) | (Starting, Quit { .. }) => (Ending, OldStep::RollBack { takes_zone: true }),
            (Returning | Ending, Failed | Quit { .. }) => (Ending, OldStep::RollBack { takes_zone: false }),
            (stage @ (Starting | Returning | Ending), Return) => (stage, OldStep::Refuse),
            (stage, Serves | GaveBack | AllServe | Stuck) | (stage @ Left, _) => (stage, OldStep::Wait),
        };
        self.stage = stage;
        step
    }
}

/// The master that comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum New {
    /// It does not serve yet.
    #[default]
    Trying,
    /// It is the proxy of its runtime directory.
    Established,
    /// It serves on, and has given the zone back.
    SteppedBack,
    /// The other ends, and only waits for its workers.
    Alone,
}

/// What the master that comes hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NewEvent {
    /// All its workers are ready.
    Ready,
    /// It cannot go on, or was told to end.
    Failed,
    /// The other wants the zone back.
    GiveBack,
    /// The other gives the zone again.
    Resume,
    /// The other says that it ends.
    Farewell,
    /// The other serves alone.
    End,
    /// The other has gone.
    Gone,
}

/// What the master that comes does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NewStep {
    /// Nothing.
    Wait,
    /// Becomes the proxy of its runtime directory, and says so.
    Establish,
    /// Gives the zone back, and says so; its workers serve on.
    StepBack,
    /// Hands connections back, says that nothing comes of it, and ends.
    Renounce,
    /// Goes on alone, with what the other left behind.
    GoOn,
    /// Takes the zone that it gave back, and is the proxy of its runtime directory again.
    Reclaim,
}

impl New {
    /// What follows from an event. After [`NewStep::Renounce`] and [`NewEvent::Gone`] there is no more.
    pub(crate) fn on(&mut self, event: NewEvent) -> NewStep {
        use NewEvent::{End, Failed, Farewell, GiveBack, Gone, Ready, Resume};
        let (next, step) = match (*self, event) {
            (New::Trying, Ready) => (New::Established, NewStep::Establish),
            (New::Trying | New::Established, GiveBack) => (New::SteppedBack, NewStep::StepBack),
            (New::SteppedBack, Resume) => (New::Established, NewStep::Reclaim),
            (New::SteppedBack, Gone | Farewell) => (New::Alone, NewStep::Reclaim),
            (New::Trying | New::Established, Farewell) => (New::Alone, NewStep::Wait),
            (New::Alone, Failed | End) => (New::Alone, NewStep::Wait),
            (_, Failed | End) => (New::SteppedBack, NewStep::Renounce),
            (_, Gone) => (*self, NewStep::GoOn),
            (_, Ready | GiveBack | Resume | Farewell) => (*self, NewStep::Wait),
        };
        *self = next;
        step
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// A small generator, so that a failing seed can be run again.
    struct Dice(u64);

    impl Dice {
        fn roll(&mut self, sides: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % sides
        }
    }

    /// Two masters, the queues between them, and an operator. Everything may come late, and either may be killed.
    #[derive(Default)]
    struct World {
        /// The rule of the one that is there, while there is another; what it hears.
        old: Option<Old>,
        old_lives: bool,
        old_hears: VecDeque<OldEvent>,
        old_has_zone: bool,
        old_workers: bool,
        old_ends: bool,
        /// The same of the one that comes.
        new: Option<New>,
        new_lives: bool,
        new_hears: VecDeque<NewEvent>,
        new_has_zone: bool,
        new_ends: bool,
        /// Whose pid is in the pid file.
        pid_is_new: bool,
        was_stopped: bool,
        /// The operator has seen the new pid, and ended the old master.
        was_left_to_new: bool,
        new_was_ended: bool,
        kills: u32,
    }

    impl World {
        fn begin(is_final: bool) -> World {
            World {
                old: Some(Old::new(is_final)),
                old_lives: true,
                old_workers: true,
                new: Some(New::default()),
                new_lives: true,
                new_has_zone: true,
                ..World::default()
            }
        }

        fn old_does(&mut self, event: OldEvent) {
            let Some(mut rule) = self.old.filter(|_| self.old_lives) else { return };
            let step = rule.on(event);
            self.old = Some(rule);
            match step {
                OldStep::Wait | OldStep::Announce | OldStep::Refuse => {}
                OldStep::Leave => {
                    self.new_hears.push_back(NewEvent::Farewell);
                    (self.old, self.old_ends) = (None, true);
                    self.old_dies();
                }
                OldStep::GiveZone => {
                    self.old_has_zone = false;
                    self.new_hears.push_back(NewEvent::Resume);
                }
                OldStep::AskBack => self.new_hears.push_back(NewEvent::GiveBack),
                OldStep::TakeZone => (self.old_has_zone, self.old_workers) = (true, false),
                OldStep::SendEnd => self.new_hears.push_back(NewEvent::End),
                OldStep::RollBack { takes_zone } => {
                    self.new_hears.push_back(NewEvent::End);
                    self.old = None;
                    self.old_has_zone |= takes_zone;
                    self.old_workers = true;
                    self.pid_is_new = false;
                }
            }
        }

        fn new_does(&mut self, event: NewEvent) {
            let Some(mut rule) = self.new.filter(|_| self.new_lives) else { return };
            let step = rule.on(event);
            self.new = Some(rule);
            match step {
                NewStep::Wait => {}
                NewStep::Establish => {
                    self.pid_is_new = true;
                    self.old_hears.push_back(OldEvent::Serves);
                }
                NewStep::StepBack => {
                    self.new_has_zone = false;
                    self.old_hears.push_back(OldEvent::GaveBack);
                }
                NewStep::Renounce => {
                    (self.new_has_zone, self.new_ends) = (false, true);
                    self.old_hears.push_back(OldEvent::Failed);
                    self.new_dies();
                }
                // It holds the zone; if it was not established yet it will be.
                NewStep::GoOn => (self.new, self.pid_is_new) = (None, true),
                NewStep::Reclaim => (self.new_has_zone, self.pid_is_new) = (true, true),
            }
        }

        fn old_dies(&mut self) {
            self.old_lives = false;
            self.old_has_zone = false;
            // What is in the queue of a link stays readable.
            self.new_hears.push_back(NewEvent::Gone);
        }

        fn new_dies(&mut self) {
            self.new_lives = false;
            self.new_has_zone = false;
            self.old_hears.push_back(OldEvent::Failed);
        }

        fn check(&self, when: &str) {
            assert!(!(self.old_has_zone && self.new_has_zone), "{when}: two hold the zone");
        }
    }

    #[test]
    fn the_place_passes_or_stays_whatever_happens() {
        for seed in 0..20_000 {
            let mut dice = Dice(seed);
            let mut world = World::begin(dice.roll(2) == 0);
            for step in 0..200 {
                match dice.roll(12) {
                    0..=2 => {
                        if let Some(event) = world.old_hears.pop_front() {
                            world.old_does(event);
                        }
                    }
                    3..=5 => {
                        if let Some(event) = world.new_hears.pop_front() {
                            world.new_does(event);
                        }
                    }
                    6 if world.new == Some(New::Trying) => world.new_does(NewEvent::Ready),
                    7 => {
                        world.old_workers |= world.old_has_zone;
                        if world.old_workers {
                            world.old_does(OldEvent::AllServe);
                        }
                    }
                    8 if dice.roll(4) == 0 => world.old_does(OldEvent::Return),
                    9 if dice.roll(10) == 0 && world.old.is_some() => {
                        world.was_stopped = true;
                        let is_replaced = world.pid_is_new;
                        world.was_left_to_new |= is_replaced && !world.old.is_some_and(Old::is_returning);
                        world.old_does(OldEvent::Quit { is_replaced });
                        // Rolled back, it ends.
                        if world.old_lives && world.old.is_none() {
                            world.old_ends = true;
                            world.old_dies();
                        }
                    }
                    10 if dice.roll(20) == 0 && world.kills == 0 => {
                        world.kills += 1;
                        match dice.roll(2) {
                            0 if world.old_lives => world.old_dies(),
                            1 if world.new_lives => world.new_dies(),
                            _ => {}
                        }
                    }
                    11 if dice.roll(30) == 0 && world.new.is_some() => {
                        // The operator may as well end the new one.
                        world.was_left_to_new = false;
                        world.new_was_ended = true;
                        world.new_does(NewEvent::Failed);
                    }
                    11 if dice.roll(4) == 0 && world.old.is_some_and(Old::is_returning) => {
                        world.old_does(OldEvent::Stuck)
                    }
                    _ => {}
                }
                world.check(&format!("seed {seed}, step {step}"));
            }
            // All that is under way arrives.
            for _ in 0..50 {
                if let Some(event) = world.old_hears.pop_front() {
                    world.old_does(event);
                } else if let Some(event) = world.new_hears.pop_front() {
                    world.new_does(event);
                } else if world.new == Some(New::Trying) {
                    world.new_does(NewEvent::Ready);
                } else if world.old.is_some_and(Old::is_returning) {
                    world.old_workers = true;
                    world.old_does(OldEvent::AllServe);
                }
                world.check(&format!("seed {seed}, at the end"));
            }
            let alive = usize::from(world.old_lives) + usize::from(world.new_lives);
            let held = world.old_has_zone || world.new_has_zone;
            if !world.was_stopped && !world.new_was_ended && world.kills == 0 {
                assert!(alive > 0, "seed {seed}: nobody is left");
            }
            if world.was_left_to_new && world.kills == 0 && !world.new_was_ended {
                assert!(world.new_lives, "seed {seed}: the new one ended with the old one");
            }
            if alive > 0 {
                assert!(held, "seed {seed}: nobody holds the zone");
                let right = if world.new_has_zone { world.new_lives } else { world.old_lives };
                assert!(right, "seed {seed}: a dead one holds the zone");
                assert_eq!(world.pid_is_new, world.new_has_zone, "seed {seed}: the pid file names another one");
            }
        }
    }
}
