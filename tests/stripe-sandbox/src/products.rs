//! Products. Source: SDK type `Product`.

use serde_json::{Value, json};

use crate::error::{ApiError, Reply};
use crate::events;
use crate::expand::Expand;
use crate::form::Params;
use crate::world::{Page, Texts, World, new_id};

/// A product.
#[derive(Clone, Debug)]
pub(crate) struct Product {
    id: String,
    created: i64,
    updated: i64,
    name: String,
    description: Option<String>,
    metadata: Texts,
    /// Whether it is for sale.
    pub(crate) active: bool,
}

impl Product {
    /// The product in Stripe's form.
    pub(crate) fn render(&self) -> Value {
        json!({
            "id": self.id, "object": "product", "active": self.active, "created": self.created, "default_price": null,
            "description": self.description, "images": [], "livemode": false, "marketing_features": [],
            "metadata": self.metadata, "name": self.name, "package_dimensions": null, "shippable": null,
            "statement_descriptor": null, "tax_code": null, "type": "service", "unit_label": null,
            "updated": self.updated, "url": null,
        })
    }
}

/// Makes a product; the id may be the caller's. Source: `ProductCreateParams.id`.
pub(crate) fn insert(
    world: &mut World,
    id: Option<String>,
    name: String,
    description: Option<String>,
    metadata: Texts,
) -> String {
    let id = id.unwrap_or_else(|| new_id("prod"));
    let product =
        Product { id: id.clone(), created: world.wall_secs, updated: world.wall_secs, name, description, metadata, active: true };
    let rendered = product.render();
    world.products.insert(&id, product);
    events::emit(world, "product.created", None, rendered, None);
    id
}

/// `POST /v1/products`
pub(crate) fn create(world: &mut World, params: &mut Params) -> Reply {
    let id = params.text("id")?;
    let name = params.required("name")?;
    let description = params.text("description")?;
    let metadata = params.metadata("metadata")?.into_new();
    let _ = Expand::from_params(params, "product")?;
    params.finish()?;
    if let Some(id) = &id
        && world.products.get(id).is_some()
    {
        return Err(ApiError {
            code: Some("resource_already_exists"),
            ..ApiError::invalid_param("id", "Product already exists.")
        });
    }
    let id = insert(world, id, name, description, metadata);
    find(world, &id)
}

fn find(world: &World, id: &str) -> Reply {
    world.products.get(id).map(Product::render).ok_or_else(|| ApiError::not_found("product", id))
}

/// `GET /v1/products/{id}`
pub(crate) fn retrieve(world: &World, id: &str, params: &mut Params) -> Reply {
    let _ = Expand::from_params(params, "product")?;
    params.finish()?;
    find(world, id)
}

/// `POST /v1/products/{id}`
pub(crate) fn update(world: &mut World, id: &str, params: &mut Params) -> Reply {
    let name = params.text("name")?;
    let description = params.unsettable("description");
    let active = params.boolean("active")?;
    let metadata = params.metadata("metadata")?;
    params.finish()?;
    let now = world.wall_secs;
    let Some(product) = world.products.get_mut(id) else {
        return Err(ApiError::not_found("product", id));
    };
    let before = product.render();
    product.name = name.unwrap_or_else(|| product.name.clone());
    if let Some(description) = description {
        product.description = description;
    }
    product.active = active.unwrap_or(product.active);
    metadata.apply(&mut product.metadata);
    product.updated = now;
    let after = product.render();
    let previous = events::previous_attributes(&before, &after);
    events::emit(world, "product.updated", None, after.clone(), previous);
    Ok(after)
}

/// `GET /v1/products`: without `active` only those that are, as with prices.
pub(crate) fn list(world: &World, params: &mut Params) -> Reply {
    let page = Page::from_params(params)?;
    let active = params.boolean("active")?.unwrap_or(true);
    let ids = params.texts("ids")?;
    params.finish()?;
    page.cut(
        &world.products,
        "product",
        "/v1/products",
        |product| product.active == active && (ids.is_empty() || ids.contains(&product.id)),
        Product::render,
    )
}
