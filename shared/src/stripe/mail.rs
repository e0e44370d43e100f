//! What an e-mail needs of Stripe: whom to write to, and what is owed. Neither is stored or logged.

use miniserde::Deserialize;
use stripe_billing::invoice::RetrieveInvoice;
use stripe_client_core::StripeRequest as _;
use stripe_core::customer::RetrieveCustomer;

use super::{
    Stripe,
    decode::need,
    key::KeySource,
    state::{CUSTOMER, INVOICE, unreadable},
};
use crate::{
    domain::{
        email::{Addressee, Bill},
        id::{CustomerId, InvoiceId},
        selling::Link,
    },
    ports::{Correspondence, StripeError},
};

impl<K: KeySource> Correspondence for Stripe<K> {
    async fn addressee(&self, customer: &CustomerId) -> Result<Option<Addressee>, StripeError> {
        let request = RetrieveCustomer::new(customer.as_str()).build().customize::<Person>();
        match self.client.send(CUSTOMER, request).await {
            Ok(found) if found.value.deleted == Some(true) => Ok(None),
            Ok(found) => Ok(Some(Addressee { address: found.value.email, name: found.value.name })),
            Err(StripeError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn bill(&self, invoice: &InvoiceId) -> Result<Option<Bill>, StripeError> {
        let request = RetrieveInvoice::new(invoice.as_str()).build().customize::<Owed>();
        match self.client.send(INVOICE, request).await {
            Ok(found) => {
                let bill = found.value.read(invoice);
                bill.map(Some).map_err(|reason| unreadable(reason, &found.request_id))
            }
            Err(StripeError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[derive(Deserialize)]
struct Person {
    deleted: Option<bool>,
    email: Option<String>,
    name: Option<String>,
}

#[derive(Deserialize)]
struct Owed {
    amount_remaining: Option<i64>,
    currency: Option<String>,
    hosted_invoice_url: Option<String>,
    status: Option<String>,
}

impl Owed {
    fn read(self, id: &InvoiceId) -> Result<Bill, String> {
        let what = format!("invoice {id}");
        let due = need(self.amount_remaining, &what, "amount_remaining")?;
        Ok(Bill {
            is_open: need(self.status, &what, "status")? == "open",
            // What is owed is never negative; a credit is nothing to pay.
            due_minor: u64::try_from(due).unwrap_or(0),
            currency: need(self.currency, &what, "currency")?,
            page: self.hosted_invoice_url.map(Link::new),
        })
    }
}
