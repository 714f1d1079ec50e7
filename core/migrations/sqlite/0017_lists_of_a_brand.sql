-- Lists of a brand in the order in which they are paged, and what is looked up of it by something else than the key begins with: without these, a
-- statement reads all that the brand has.
create index products_by_id on products (brand_id, id);
create index automation_runs_by_brand on automation_runs (brand_id, id);
create index privacy_requests_by_brand on privacy_requests (brand_id, created_at, id);
create index merges_undone on merges (brand_id) where undone_at is not null;
