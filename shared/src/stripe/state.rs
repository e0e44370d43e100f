//! Stripe's present state of a customer.

use stripe_billing::{
    invoice::{ListInvoice, RetrieveInvoice},
    invoice_line_item::ListInvoiceInvoiceLineItem,
    subscription::{ListSubscription, ListSubscriptionStatus, RetrieveSubscription},
    subscription_item::ListSubscriptionItem,
    test_helpers_test_clock::RetrieveTestHelpersTestClock,
};
use stripe_checkout::checkout_session::{ListCheckoutSession, RetrieveCheckoutSession};
use stripe_client_core::{RequestBuilder, StripeRequest as _};
use stripe_core::{
    charge::RetrieveCharge,
    customer::{ListCustomer, RetrieveCustomer},
    dispute::RetrieveDispute,
};

use super::{
    Answered, Stripe,
    decode::{
        Charge, CheckoutSession, Customer, Dispute, Invoice, Item, List, Listed, OfCustomer, SettledInvoice, Subscription,
        TestClock,
    },
    key::KeySource,
};
use crate::{
    domain::{
        facts::{CustomerFacts, InvoiceFacts, PaidInvoice, Status, SubscriptionFacts, by_rank},
        id::{CustomerId, UserId},
        time::EpochSecs,
    },
    ports::{PaymentFacts, Payments, StripeError, StripeState},
};

/// The most objects of a page, Stripe's own bound.
pub(super) const PAGE: i64 = 100;
/// The most pages of a list that are read.
const MOST_PAGES: usize = 10;

pub(super) const CUSTOMERS: &str = "/v1/customers";
pub(super) const CUSTOMER: &str = "/v1/customers/{id}";
const TEST_CLOCK: &str = "/v1/test_helpers/test_clocks/{id}";
pub(super) const SUBSCRIPTIONS: &str = "/v1/subscriptions";
const SUBSCRIPTION: &str = "/v1/subscriptions/{id}";
const SUBSCRIPTION_ITEMS: &str = "/v1/subscription_items";
const INVOICES: &str = "/v1/invoices";
pub(super) const INVOICE: &str = "/v1/invoices/{id}";
const INVOICE_LINES: &str = "/v1/invoices/{id}/lines";
const CHARGE: &str = "/v1/charges/{id}";
const DISPUTE: &str = "/v1/disputes/{id}";
pub(super) const CHECKOUT_SESSIONS: &str = "/v1/checkout/sessions";
const CHECKOUT_SESSION: &str = "/v1/checkout/sessions/{id}";

/// What to do with a list that is longer than [`MOST_PAGES`].
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Longer {
    /// A decision from a part of it would be wrong.
    IsAnError,
    /// The newest come first, and older ones decide nothing.
    IsCut,
}

/// Builds the request for the page after an object, or for the first page. Every list's builder has the method, no trait does.
macro_rules! page_of {
    ($list:expr) => {
        |after| match after {
            Some(after) => $list.clone().starting_after(after).build(),
            None => $list.build(),
        }
    };
}
pub(super) use page_of;

impl<K: KeySource> StripeState for Stripe<K> {
    async fn customer(&self, id: &CustomerId) -> Result<CustomerFacts, StripeError> {
        let (customer, subscriptions, open_invoices, checkout_users) =
            tokio::join!(self.customer_and_clock(id), self.subscriptions(id), self.open_invoices(id), self.checkout_users(id));
        let (customer, test_clock) = customer?;
        if customer.value.is_deleted() {
            // Lists of a deleted customer may be refused, and what they hold no longer matters.
            let (subscriptions, open_invoices, paid_invoices, checkout_users) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            let (customer, deleted) = (id.clone(), true);
            return Ok(CustomerFacts {
                customer,
                deleted,
                user_id: None,
                test_clock: None,
                subscriptions,
                open_invoices,
                paid_invoices,
                checkout_users,
            });
        }
        let subscriptions = subscriptions?;
        // Only where the best of them has ended can a late payment restore anything. A status that is newer than we know may be
        // anything, and must not keep us from looking.
        let known = |status: &Status| !matches!(status, Status::Other(_));
        let ranked = by_rank(&subscriptions, |subscription| Some(&subscription.status).filter(|status| known(status)));
        let paid_invoices = match ranked.first() {
            Some(best) if best.status == Status::Canceled => self.paid_invoices(id, &subscriptions).await?,
            _ => Vec::new(),
        };
        Ok(CustomerFacts {
            customer: customer.value.customer_id().map_err(|reason| unreadable(reason, &customer.request_id))?,
            deleted: false,
            user_id: customer.value.user_id(),
            test_clock,
            subscriptions,
            open_invoices: open_invoices?,
            paid_invoices,
            checkout_users: checkout_users?,
        })
    }

    async fn customer_of(&self, object_id: &str) -> Result<Option<CustomerId>, StripeError> {
        let (route, request) = match object_id.split_once('_') {
            // It is the customer, which asking Stripe would not make truer.
            Some(("cus", _)) => return Ok(CustomerId::new(object_id).ok()),
            Some(("sub", _)) => (SUBSCRIPTION, RetrieveSubscription::new(object_id).build()),
            Some(("in", _)) => (INVOICE, RetrieveInvoice::new(object_id).build()),
            Some(("cs", _)) => (CHECKOUT_SESSION, RetrieveCheckoutSession::new(object_id).build()),
            Some(("ch" | "py" | "dp" | "du", _)) => return Ok(self.payment(object_id).await?.and_then(|shown| shown.customer)),
            _ => return Ok(None),
        };
        let object = self.client.send(route, request.customize::<OfCustomer>()).await?;
        object.value.customer_id().map_err(|reason| unreadable(reason, &object.request_id))
    }

    async fn customers_on_clock(&self, clock: &str) -> Result<Vec<CustomerId>, StripeError> {
        let list = ListCustomer::new().test_clock(clock).limit(PAGE);
        let pages = self.list(CUSTOMERS, Longer::IsAnError, page_of!(list));
        read(pages.await?, |customer: Customer| customer.customer_id())
    }
}

impl<K: KeySource> Payments for Stripe<K> {
    async fn payment(&self, object_id: &str) -> Result<Option<PaymentFacts>, StripeError> {
        let (charge, dispute) = match object_id.split_once('_') {
            Some(("ch" | "py", _)) => (object_id.to_owned(), None),
            Some(("dp" | "du", _)) => {
                let request = RetrieveDispute::new(object_id).build().customize::<Dispute>();
                let Answered { value, request_id } = self.client.send(DISPUTE, request).await?;
                let dispute = value.read().map_err(|reason| unreadable(reason, &request_id))?;
                (dispute.charge_id.clone(), Some(dispute))
            }
            _ => return Ok(None),
        };
        let request = RetrieveCharge::new(charge.as_str()).build().customize::<Charge>();
        let Answered { value, request_id } = self.client.send(CHARGE, request).await?;
        let customer = value.customer_id().map_err(|reason| unreadable(reason, &request_id))?;
        let payment = match dispute {
            Some(dispute) => Some(dispute),
            None => value.refund().map_err(|reason| unreadable(reason, &request_id))?,
        };
        Ok(Some(PaymentFacts { customer, payment }))
    }
}

impl<K: KeySource> Stripe<K> {
    async fn customer_and_clock(&self, id: &CustomerId) -> Result<(Answered<Customer>, Option<EpochSecs>), StripeError> {
        let customer = self.client.send(CUSTOMER, RetrieveCustomer::new(id.as_str()).build().customize::<Customer>()).await?;
        let Some(clock) = customer.value.clock() else {
            return Ok((customer, None));
        };
        let request = RetrieveTestHelpersTestClock::new(clock).build().customize::<TestClock>();
        match self.client.send(TEST_CLOCK, request).await {
            Ok(clock) => {
                let shows = clock.value.shows().map_err(|reason| unreadable(reason, &clock.request_id))?;
                Ok((customer, Some(shows)))
            }
            // A clock takes its customers with it when it is deleted: the next look finds this one deleted.
            Err(StripeError::NotFound { request_id }) => Err(StripeError::Unavailable {
                reason: "the customer's test clock is being deleted".to_owned(),
                retry_after_secs: None,
                request_id,
            }),
            Err(error) => Err(error),
        }
    }

    async fn subscriptions(&self, customer: &CustomerId) -> Result<Vec<SubscriptionFacts>, StripeError> {
        let list = ListSubscription::new()
            .customer(customer.as_str())
            .status(ListSubscriptionStatus::All)
            .expand(["data.latest_invoice".to_owned()])
            .limit(PAGE);
        let pages = self.list(SUBSCRIPTIONS, Longer::IsAnError, page_of!(list));
        let mut pages: Vec<Answered<Vec<Subscription>>> = pages.await?;
        for subscription in pages.iter_mut().flat_map(|page| &mut page.value).filter(|subscription| subscription.has_more_items())
        {
            if let Some(id) = subscription.id.clone() {
                let items = self.items(&id).await?;
                subscription.items = Some(List { data: Some(items), has_more: None });
            }
        }
        read(pages, Subscription::read)
    }

    /// All items of a subscription that has more than Stripe lists in it.
    async fn items(&self, subscription: &str) -> Result<Vec<Item>, StripeError> {
        let list = ListSubscriptionItem::new(subscription).limit(PAGE);
        let pages = self.list(SUBSCRIPTION_ITEMS, Longer::IsAnError, page_of!(list));
        read(pages.await?, Ok)
    }

    async fn open_invoices(&self, customer: &CustomerId) -> Result<Vec<InvoiceFacts>, StripeError> {
        let list = ListInvoice::new().customer(customer.as_str()).status(stripe_billing::InvoiceStatus::Open).limit(PAGE);
        let pages = self.list(INVOICES, Longer::IsAnError, page_of!(list));
        read(pages.await?, Invoice::read)
    }

    /// Of a customer's newest hundred paid invoices those that were paid after the end of their subscription, and paid for some of
    /// it: those that may be paid late are among the last.
    async fn paid_invoices(
        &self,
        customer: &CustomerId,
        subscriptions: &[SubscriptionFacts],
    ) -> Result<Vec<PaidInvoice>, StripeError> {
        let paid = stripe_billing::InvoiceStatus::Paid;
        let request = ListInvoice::new().customer(customer.as_str()).status(paid).limit(PAGE).build();
        let Answered { value, request_id } = self.client.send(INVOICES, request.customize::<List<SettledInvoice>>()).await?;
        let invoices = value.data.ok_or_else(|| unreadable(format!("{INVOICES}: the list has no data"), &request_id))?;
        let mut all = Vec::new();
        for mut invoice in invoices {
            let Some(subscription) = invoice.paid_after_the_end_of(subscriptions) else { continue };
            if let Some(id) = invoice.id.clone().filter(|_| invoice.has_more_lines()) {
                let list = ListInvoiceInvoiceLineItem::new(id).limit(PAGE);
                let lines = read(self.list(INVOICE_LINES, Longer::IsAnError, page_of!(list)).await?, Ok)?;
                invoice.lines = Some(List { data: Some(lines), has_more: None });
            }
            all.extend(invoice.read(&subscription).map_err(|reason| unreadable(reason, &request_id))?);
        }
        Ok(all)
    }

    async fn checkout_users(&self, customer: &CustomerId) -> Result<Vec<UserId>, StripeError> {
        let complete = stripe_checkout::CheckoutSessionStatus::Complete;
        let list = ListCheckoutSession::new().customer(customer.as_str()).status(complete).limit(PAGE);
        let pages = self.list(CHECKOUT_SESSIONS, Longer::IsCut, page_of!(list));
        let mut sessions: Vec<_> = read(pages.await?, CheckoutSession::read)?.into_iter().flatten().collect();
        sessions.sort_by_key(|(created, _)| std::cmp::Reverse(*created));
        Ok(sessions.into_iter().map(|(_, user)| user).collect())
    }

    /// The pages of a list, up to [`MOST_PAGES`].
    pub(super) async fn list<T: Listed>(
        &self,
        route: &'static str,
        longer: Longer,
        page_after: impl Fn(Option<&str>) -> RequestBuilder,
    ) -> Result<Vec<Answered<Vec<T>>>, StripeError> {
        let mut pages: Vec<Answered<Vec<T>>> = Vec::new();
        let mut after: Option<String> = None;
        for _ in 0..MOST_PAGES {
            let answer = self.client.send(route, page_after(after.as_deref()).customize::<List<T>>()).await?;
            let request_id = answer.request_id;
            let Some(data) = answer.value.data else {
                return Err(unreadable(format!("{route}: the list has no data"), &request_id));
            };
            let last = data.last().and_then(|object| object.id().map(str::to_owned));
            pages.push(Answered { value: data, request_id });
            match (answer.value.has_more, last) {
                (Some(true), Some(last)) => after = Some(last),
                (Some(true), None) => break,
                _ => return Ok(pages),
            }
        }
        if longer == Longer::IsCut {
            return Ok(pages);
        }
        let request_id = pages.last().map(|page| page.request_id.clone()).unwrap_or_default();
        Err(unreadable(format!("{route}: the list has more than {MOST_PAGES} pages, or a page that leads nowhere"), &request_id))
    }
}

pub(super) fn unreadable(reason: String, request_id: &str) -> StripeError {
    StripeError::Unreadable { reason, request_id: request_id.to_owned() }
}

/// Reads every object of the pages; an error names the request that brought it.
pub(super) fn read<T, F>(pages: Vec<Answered<Vec<T>>>, read: impl Fn(T) -> Result<F, String>) -> Result<Vec<F>, StripeError> {
    let mut all = Vec::new();
    for page in pages {
        for object in page.value {
            all.push(read(object).map_err(|reason| unreadable(reason, &page.request_id))?);
        }
    }
    Ok(all)
}
