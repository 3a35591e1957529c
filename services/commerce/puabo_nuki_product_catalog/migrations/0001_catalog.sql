CREATE TABLE products (
    tenant_id    text NOT NULL,
    product_id   uuid PRIMARY KEY,
    slug         text NOT NULL,
    title        text NOT NULL,
    description  text NOT NULL,
    language     text NOT NULL,
    brand        text NOT NULL,
    category     text NOT NULL,
    tags         text[] NOT NULL,
    -- [{"name": "Size", "values": ["S", "M"]}], in the order in which they are shown.
    options      jsonb NOT NULL,
    -- {"material": ["linen"]}
    attributes   jsonb NOT NULL,
    state        text NOT NULL DEFAULT 'draft' CHECK (state IN ('draft', 'published')),
    version      bigint NOT NULL DEFAULT 1,
    create_time  timestamptz NOT NULL DEFAULT now(),
    update_time  timestamptz NOT NULL DEFAULT now(),
    publish_time timestamptz,
    CONSTRAINT products_slug UNIQUE (tenant_id, slug)
);
CREATE INDEX products_in_order ON products (tenant_id, product_id);
SELECT nexus.guard_tenant_rows('products');

CREATE TABLE variants (
    tenant_id     text NOT NULL,
    variant_id    uuid PRIMARY KEY,
    product_id    uuid NOT NULL REFERENCES products ON DELETE CASCADE,
    sku           text NOT NULL,
    -- One for each of the product's options, in their order.
    option_values text[] NOT NULL,
    barcode       text NOT NULL,
    weight_grams  integer NOT NULL,
    length_mm     integer NOT NULL,
    width_mm      integer NOT NULL,
    height_mm     integer NOT NULL,
    tax_category  text NOT NULL,
    digital       boolean NOT NULL,
    media_id      uuid,
    version       bigint NOT NULL DEFAULT 1,
    create_time   timestamptz NOT NULL DEFAULT now(),
    update_time   timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT variants_sku UNIQUE (tenant_id, sku),
    CONSTRAINT variants_options UNIQUE (product_id, option_values)
);
SELECT nexus.guard_tenant_rows('variants');

CREATE TABLE media (
    tenant_id    text NOT NULL,
    media_id     uuid PRIMARY KEY,
    product_id   uuid NOT NULL REFERENCES products ON DELETE CASCADE,
    content_type text NOT NULL,
    alt_text     text NOT NULL,
    width        integer NOT NULL,
    height       integer NOT NULL,
    position     integer NOT NULL,
    -- SHA-256 of the data.
    digest       bytea NOT NULL,
    data         bytea NOT NULL,
    CONSTRAINT media_once UNIQUE (product_id, digest)
);
-- Pictures are compressed already.
ALTER TABLE media ALTER COLUMN data SET STORAGE EXTERNAL;
SELECT nexus.guard_tenant_rows('media');

CREATE TABLE attributes (
    tenant_id text NOT NULL,
    key       text NOT NULL,
    name      text NOT NULL,
    kind      text NOT NULL CHECK (kind IN ('text', 'number', 'boolean', 'choice')),
    choices   text[] NOT NULL,
    facet     boolean NOT NULL,
    PRIMARY KEY (tenant_id, key)
);
SELECT nexus.guard_tenant_rows('attributes');

CREATE TABLE collections (
    tenant_id     text NOT NULL,
    collection_id uuid PRIMARY KEY,
    slug          text NOT NULL,
    title         text NOT NULL,
    description   text NOT NULL,
    -- Filters of a search; products belong by hand when there are none.
    rules         text[] NOT NULL,
    version       bigint NOT NULL DEFAULT 1,
    CONSTRAINT collections_slug UNIQUE (tenant_id, slug)
);
CREATE INDEX collections_in_order ON collections (tenant_id, title, collection_id);
SELECT nexus.guard_tenant_rows('collections');

CREATE TABLE collection_products (
    tenant_id     text NOT NULL,
    collection_id uuid NOT NULL REFERENCES collections ON DELETE CASCADE,
    product_id    uuid NOT NULL REFERENCES products ON DELETE CASCADE,
    position      bigint GENERATED ALWAYS AS IDENTITY,
    PRIMARY KEY (collection_id, product_id)
);
CREATE INDEX ON collection_products (product_id);
SELECT nexus.guard_tenant_rows('collection_products');
