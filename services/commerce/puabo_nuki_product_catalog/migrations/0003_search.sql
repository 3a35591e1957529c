-- What the search looks at. Only published products have rows here: a draft cannot be found.
CREATE TABLE search_documents (
    tenant_id    text NOT NULL,
    product_id   uuid PRIMARY KEY REFERENCES products ON DELETE CASCADE,
    language     text NOT NULL,
    words        tsvector NOT NULL,
    -- Ids of what it can be filtered by.
    facets       integer[] NOT NULL,
    title_key    text NOT NULL,
    publish_time timestamptz NOT NULL
);
CREATE INDEX search_documents_of_tenant ON search_documents (tenant_id, language);
SELECT nexus.guard_tenant_rows('search_documents');

CREATE TABLE search_facets (
    tenant_id text NOT NULL,
    facet_id  integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key       text NOT NULL,
    value     text NOT NULL,
    CONSTRAINT search_facets_once UNIQUE (tenant_id, key, value)
);
SELECT nexus.guard_tenant_rows('search_facets');

-- The words of the published products, for what is mistyped.
CREATE TABLE search_words (
    tenant_id text NOT NULL,
    word      text COLLATE "C" NOT NULL,
    -- How many have it.
    documents integer NOT NULL,
    PRIMARY KEY (tenant_id, word)
);
SELECT nexus.guard_tenant_rows('search_words');

-- The prices of products over time, as far as they are on record: one row for each period in which they stay the same.
CREATE TABLE search_prices (
    tenant_id  text NOT NULL,
    product_id uuid NOT NULL REFERENCES products ON DELETE CASCADE,
    channel    text NOT NULL,
    currency   text NOT NULL,
    start_time timestamptz NOT NULL,
    end_time   timestamptz NOT NULL,
    -- Of its variants; and what the cheapest one costs without a sale, if one is on.
    lowest     bigint NOT NULL,
    highest    bigint NOT NULL,
    regular    bigint,
    PRIMARY KEY (product_id, channel, currency, start_time)
);
CREATE INDEX search_prices_of_tenant ON search_prices (tenant_id, channel, currency, product_id);
SELECT nexus.guard_tenant_rows('search_prices');
