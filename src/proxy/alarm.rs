//! When a call is cut off. A timer costs two locks of the runtime's, and few calls ever need theirs: one that is not
//! needed any more stays set, and the next call moves it away, which costs neither.
//!
//! It decides nothing: how long a call may take is said by whoever sets its alarm.

use std::cell::RefCell;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use tokio::time::{Instant, Sleep};

/// The most timers that are kept for calls to come.
const SPARE_MAX: usize = 256;

/// The timers of one core that no call needs.
#[derive(Debug, Default)]
pub struct Alarms(RefCell<Vec<Pin<Box<Sleep>>>>);

/// The alarm of one call.
#[derive(Debug)]
pub(super) struct Alarm<'c> {
    alarms: &'c Alarms,
    state: RefCell<State>,
}

#[derive(Debug)]
struct State {
    /// `None` is never.
    at: Option<Instant>,
    /// None as long as the call has not had to wait.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Alarms {
    pub(super) const fn alarm(&self, at: Option<Instant>) -> Alarm<'_> {
        Alarm { alarms: self, state: RefCell::new(State { at, sleep: None }) }
    }

    fn sleep(&self, at: Instant) -> Pin<Box<Sleep>> {
        match self.0.borrow_mut().pop() {
            Some(mut sleep) => {
                sleep.as_mut().reset(at);
                sleep
            }
            None => Box::pin(tokio::time::sleep_until(at)),
        }
    }
}

impl Alarm<'_> {
    /// Moves it to another time.
    pub(super) fn set(&self, at: Option<Instant>) {
        let mut state = self.state.borrow_mut();
        if state.at == at {
            return;
        }
        state.at = at;
        if let (Some(at), Some(sleep)) = (at, &mut state.sleep) {
            sleep.as_mut().reset(at);
        }
    }

    /// What comes of the future; `None` when the time is over before. It stays where it is: to hand it over would copy
    /// it, some hundred bytes for each call.
    pub(super) async fn bound<T>(
        &self,
        mut future: Pin<&mut impl Future<Output = T>>,
    ) -> Option<T> {
        std::future::poll_fn(|context| match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => self.poll_over(context).map(|()| None),
        })
        .await
    }

    fn poll_over(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.borrow_mut();
        let Some(at) = state.at else { return Poll::Pending };
        let sleep = state.sleep.get_or_insert_with(|| self.alarms.sleep(at));
        // Also a call that takes all the turns there are has its end.
        pin!(tokio::task::unconstrained(sleep.as_mut())).poll(context)
    }
}

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if let Some(sleep) = self.state.get_mut().sleep.take() {
            let mut spare = self.alarms.0.borrow_mut();
            if spare.len() < SPARE_MAX {
                spare.push(sleep);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SOON: Duration = Duration::from_millis(2);
    const LONG: Duration = Duration::from_secs(3600);
    /// How long anything that must come may take.
    const PATIENCE: Duration = Duration::from_secs(20);

    async fn is_cut_off(alarm: &Alarm<'_>) -> bool {
        let waiting = pin!(std::future::pending::<()>());
        tokio::time::timeout(PATIENCE, alarm.bound(waiting)).await == Ok(None)
    }

    #[tokio::test]
    async fn a_call_is_cut_off_at_its_own_time_whatever_the_timer_was_set_to_before() {
        let alarms = Alarms::default();
        for _ in 0..3 {
            // Needed, and then set for longer: the next is not cut off with the one before.
            let alarm = alarms.alarm(Some(Instant::now() + SOON));
            assert!(is_cut_off(&alarm).await && is_cut_off(&alarm).await);
            drop(alarm);
            let alarm = alarms.alarm(Some(Instant::now() + LONG));
            assert_eq!(alarm.bound(pin!(tokio::time::sleep(SOON * 10))).await, Some(()));
            // Not needed, and then set for less: by the same call, and by the next.
            alarm.set(Some(Instant::now() + SOON));
            assert!(is_cut_off(&alarm).await);
            alarm.set(Some(Instant::now() + LONG));
            assert_eq!(alarm.bound(pin!(tokio::time::sleep(SOON))).await, Some(()));
        }
        assert_eq!(alarms.0.borrow().len(), 1, "one after another they take one timer");
    }

    #[tokio::test]
    async fn without_a_time_nothing_is_cut_off() {
        let alarms = Alarms::default();
        let alarm = alarms.alarm(None);
        assert_eq!(alarm.bound(pin!(tokio::time::sleep(SOON))).await, Some(()));
        drop(alarm);
        assert!(alarms.0.borrow().is_empty());
    }
}
