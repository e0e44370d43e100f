//! Time, chance, faults and the trace: what every part of a world shares.
//!
//! Every call that leaves a function goes through [`Hub::carry`]: the request travels, takes effect in a task of its own, and the
//! answer travels back. So a caller that gives up, or whose function ends, does not call its request back: it may still take
//! effect later. What goes wrong with a call is drawn from the chance of its invocation, so that leaving other steps of a story
//! out does not change it.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    future::{Future, pending, poll_fn},
    pin::{Pin, pin},
    rc::Rc,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
    time::Duration,
};

use fastrand::Rng;
use tokentill::ports::{Clock, Timer};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};

thread_local! {
    /// The invocation that is being polled; 0 is nobody.
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

/// What goes wrong with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// The request never arrives, and the caller is told so at once or never.
    LoseRequest,
    /// It takes effect, and the caller is told at once or never that there is no answer.
    LoseReply,
    /// It travels for seconds: longer than the SDK waits, as often as not, so that its own repetition overtakes it.
    Slow,
    /// There are too many requests.
    Throttle,
    /// Somebody else is at the same items, or at the same customer's meter.
    Conflict,
    /// An answer of 500, without an effect.
    Fail,
    /// An answer of 500 after it took effect.
    FailAfter,
    /// The function ends before the request is sent.
    CrashBefore,
    /// The function ends after it took effect.
    CrashAfter,
    /// An index does not show yet what was written in the last seconds.
    Stale,
}

impl Fault {
    /// Its name in a trace.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::LoseRequest => "request lost",
            Self::LoseReply => "reply lost",
            Self::Slow => "slow",
            Self::Throttle => "throttled",
            Self::Conflict => "conflict",
            Self::Fail => "500",
            Self::FailAfter => "500 after it took effect",
            Self::CrashBefore => "function ended before",
            Self::CrashAfter => "function ended after",
            Self::Stale => "index stale",
        }
    }
}

/// What became of a call.
#[derive(Debug)]
pub(crate) enum Carried<T> {
    /// An answer.
    Answer(T),
    /// Nobody knows.
    NoAnswer,
    /// A refusal: throttled, in conflict, or a 500.
    Refused(Fault),
}

/// What every part of a world shares. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Hub(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    began: Instant,
    base_ms: i64,
    invocations: Vec<Invocation>,
    hash: u64,
    lines: Option<Vec<String>>,
    injected: BTreeMap<&'static str, u64>,
    calls: u64,
}

#[derive(Debug)]
struct Invocation {
    name: String,
    chance: Rng,
    permille: u32,
    calls: usize,
    muted: BTreeSet<usize>,
    struck: Vec<usize>,
    crashed: bool,
    /// It stands still until then: frozen, or without a processor.
    frozen_until: Option<Instant>,
}

/// How an invocation is going to be disturbed.
#[derive(Debug, Clone)]
pub struct Weather {
    /// Draws its faults.
    pub seed: u64,
    /// Of a thousand calls, how many go wrong.
    pub permille: u32,
    /// Calls, by their number within the invocation, that are left alone all the same.
    pub muted: BTreeSet<usize>,
}

impl Weather {
    /// Nothing goes wrong.
    #[must_use]
    pub(crate) fn calm() -> Self {
        Self { seed: 0, permille: 0, muted: BTreeSet::new() }
    }
}

/// Goes back to the invocation before, however polling ends.
struct Here(usize);

impl Drop for Here {
    fn drop(&mut self) {
        CURRENT.set(self.0);
    }
}

struct Turn {
    fault: Option<Fault>,
    there_ms: u64,
    back_ms: u64,
    at_once: bool,
}

impl Hub {
    /// A hub whose clock shows `base_ms` now.
    #[must_use]
    pub(crate) fn new(base_ms: i64, records: bool) -> Self {
        let nobody = Invocation {
            name: "nobody".to_owned(),
            chance: Rng::with_seed(0),
            permille: 0,
            calls: 0,
            muted: BTreeSet::new(),
            struck: Vec::new(),
            crashed: false,
            frozen_until: None,
        };
        Self(Arc::new(Mutex::new(State {
            began: Instant::now(),
            base_ms,
            invocations: vec![nobody],
            hash: 0xcbf2_9ce4_8422_2325,
            lines: records.then(Vec::new),
            injected: BTreeMap::new(),
            calls: 0,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The world's own moment, in milliseconds since 1970.
    #[must_use]
    pub(crate) fn now_ms(&self) -> i64 {
        let state = self.state();
        state.base_ms + i64::try_from(state.began.elapsed().as_millis()).expect("a story is short")
    }

    /// The world's own moment, in seconds since 1970.
    #[must_use]
    pub(crate) fn now_secs(&self) -> i64 {
        self.now_ms().div_euclid(1_000)
    }

    /// Adds a line to the trace. It must hold nothing that differs between two runs of a seed.
    pub(crate) fn note(&self, line: &str) {
        let now_ms = self.now_ms();
        let mut state = self.state();
        let line = format!("{now_ms} {line}");
        for byte in line.bytes() {
            state.hash = (state.hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        if let Some(lines) = &mut state.lines {
            lines.push(line);
        }
    }

    /// Counts something that was done to the functions.
    pub(crate) fn count(&self, what: &'static str) {
        *self.state().injected.entry(what).or_default() += 1;
    }

    /// What was done to the functions, by kind.
    #[must_use]
    pub(crate) fn injected(&self) -> BTreeMap<&'static str, u64> {
        self.state().injected.clone()
    }

    /// The trace's hash, its lines if they were kept, and how many calls there were.
    #[must_use]
    pub(crate) fn trace(&self) -> (u64, Vec<String>, u64) {
        let state = self.state();
        (state.hash, state.lines.clone().unwrap_or_default(), state.calls)
    }

    /// Runs an invocation until it is done, crashes, or its time is over; `None` if it did not come to its end.
    pub(crate) async fn invoke<T>(
        &self,
        name: String,
        weather: &Weather,
        limit_secs: u64,
        struck: Option<&Struck>,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let id = {
            let mut state = self.state();
            state.invocations.push(Invocation {
                name: name.clone(),
                chance: Rng::with_seed(weather.seed),
                permille: weather.permille,
                calls: 0,
                muted: weather.muted.clone(),
                struck: Vec::new(),
                crashed: false,
                frozen_until: None,
            });
            state.invocations.len() - 1
        };
        self.note(&format!("{name} begins"));
        let mut work = pin!(work);
        let mut thaw = pin!(sleep(Duration::ZERO));
        let scoped = poll_fn(|context| {
            let frozen_until = self.state().invocations[id].frozen_until;
            if let Some(until) = frozen_until.filter(|until| Instant::now() < *until) {
                thaw.as_mut().reset(until);
                let _ = thaw.as_mut().poll(context);
                return Poll::Pending;
            }
            let polled = {
                let _here = Here(CURRENT.replace(id));
                work.as_mut().poll(context)
            };
            if self.state().invocations[id].crashed {
                return Poll::Ready(None);
            }
            polled.map(Some)
        });
        let done = tokio::time::timeout(Duration::from_secs(limit_secs), scoped).await;
        if done.is_err() {
            self.count("time over");
        }
        let came_to = match &done {
            Ok(Some(_)) => "ends",
            Ok(None) => "crashes",
            Err(_) => "is out of time",
        };
        self.note(&format!("{name} {came_to}"));
        if let Some(struck) = struck {
            *struck.0.borrow_mut() = self.state().invocations[id].struck.clone();
        }
        done.ok().flatten()
    }

    fn turn(&self, site: &str, repertoire: &[Fault]) -> (usize, Turn) {
        let id = CURRENT.get();
        let (turn, line) = {
            let mut state = self.state();
            state.calls += 1;
            let invocation = &mut state.invocations[id];
            let call = invocation.calls;
            invocation.calls += 1;
            // Drawn whatever comes of it, so that muting a call changes no other one.
            let strikes = invocation.chance.u32(..1_000) < invocation.permille;
            let which = invocation.chance.usize(..repertoire.len().max(1));
            let quick = |chance: &mut Rng| if chance.u8(..8) == 0 { chance.u64(20..300) } else { chance.u64(1..12) };
            let (mut there_ms, back_ms) = (quick(&mut invocation.chance), quick(&mut invocation.chance));
            let slow_ms = invocation.chance.u64(500..9_000);
            let at_once = invocation.chance.bool();
            let freezes = invocation.chance.u32(..15_000) < invocation.permille;
            let frozen_secs = invocation.chance.u64(5..90);
            let fault = (strikes && !invocation.muted.contains(&call)).then(|| repertoire.get(which).copied()).flatten();
            if fault == Some(Fault::Slow) {
                there_ms = slow_ms;
            }
            let freezes = freezes && !invocation.muted.contains(&call);
            if freezes {
                invocation.frozen_until = Instant::now().checked_add(Duration::from_secs(frozen_secs));
            }
            if fault.is_some() || freezes {
                invocation.struck.push(call);
            }
            let still = if freezes { format!("; {} stands still for {frozen_secs} s", invocation.name) } else { String::new() };
            let line = format!("{} {site} #{call}{}", invocation.name, fault.map_or("", |_| ": "));
            if freezes {
                *state.injected.entry("stands still").or_default() += 1;
            }
            if let Some(fault) = fault {
                *state.injected.entry(fault.name()).or_default() += 1;
            }
            let line = line + fault.map_or("", Fault::name) + &still;
            (Turn { fault, there_ms, back_ms, at_once }, line)
        };
        self.note(&line);
        (id, turn)
    }

    fn crash(&self, id: usize) {
        self.state().invocations[id].crashed = true;
    }

    /// Carries a call to where it takes effect, and its answer back, with whatever goes wrong on the way. `effect` is told
    /// whether what it reads is to be stale.
    pub(crate) fn carry<T: Send + 'static>(
        &self,
        site: &str,
        repertoire: &[Fault],
        effect: impl FnOnce(bool) -> T + 'static,
    ) -> Pin<Box<dyn Future<Output = Carried<T>> + Send>> {
        let (id, turn) = self.turn(site, repertoire);
        let hub = self.clone();
        let (tell, told) = oneshot::channel();
        let Turn { fault, there_ms, back_ms, at_once } = turn;
        let ms = Duration::from_millis;
        let arrives =
            !matches!(fault, Some(Fault::LoseRequest | Fault::Throttle | Fault::Conflict | Fault::Fail | Fault::CrashBefore));
        if arrives {
            // A task of its own: the request is on its way, whatever becomes of who sent it.
            tokio::task::spawn_local(async move {
                sleep(ms(there_ms)).await;
                let _ = tell.send(effect(fault == Some(Fault::Stale)));
            });
        }
        Box::pin(async move {
            match fault {
                None | Some(Fault::Slow | Fault::Stale) => {
                    let Ok(answer) = told.await else { return pending().await };
                    sleep(ms(back_ms)).await;
                    Carried::Answer(answer)
                }
                Some(Fault::LoseRequest | Fault::LoseReply) => {
                    sleep(if at_once { ms(there_ms + back_ms) } else { Duration::from_secs(20) }).await;
                    Carried::NoAnswer
                }
                Some(fault @ (Fault::Throttle | Fault::Conflict | Fault::Fail)) => {
                    sleep(ms(there_ms + back_ms)).await;
                    Carried::Refused(fault)
                }
                Some(Fault::FailAfter) => {
                    let _ = told.await;
                    sleep(ms(back_ms)).await;
                    Carried::Refused(Fault::FailAfter)
                }
                Some(Fault::CrashBefore) => {
                    hub.crash(id);
                    pending().await
                }
                Some(Fault::CrashAfter) => {
                    let _ = told.await;
                    hub.crash(id);
                    pending().await
                }
            }
        })
    }
}

/// Which calls of an invocation something happened to, by their number.
#[derive(Debug, Clone, Default)]
pub(crate) struct Struck(pub Rc<RefCell<Vec<usize>>>);

/// A function's clock: the world's, and a little off.
#[derive(Debug, Clone)]
pub(crate) struct SimClock {
    /// Whose time.
    pub hub: Hub,
    /// How far ahead of it this clock is.
    pub skew_ms: i64,
}

impl SimClock {
    /// A clock that is off by up to so much, either way.
    pub(crate) fn off(hub: &Hub, most_skew_ms: i64, chance: &mut Rng) -> Self {
        Self { hub: hub.clone(), skew_ms: chance.i64(-most_skew_ms..most_skew_ms) }
    }
}

impl Clock for SimClock {
    fn now_ms(&self) -> i64 {
        self.hub.now_ms() + self.skew_ms
    }
}

impl Timer for SimClock {
    async fn wait_until_ms(&self, moment_ms: i64) {
        if let Ok(ms @ 1..) = u64::try_from(moment_ms.saturating_sub(self.now_ms())) {
            sleep(Duration::from_millis(ms)).await;
        }
    }
}
