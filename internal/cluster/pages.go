package cluster

import (
	"context"
	"fmt"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/pager"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"
)

// PageSize is the number of objects in one answer.
const PageSize = 500

// listLimit bounds one request for a page.
const listLimit = 30 * time.Second

// All lists all objects of a kind, page by page.
func All[T any](ctx context.Context, kind, selector string, page pager.ListPageFunc) ([]T, error) {
	var all []T
	p := pager.New(func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
		ctx, cancel := context.WithTimeout(ctx, listLimit)
		defer cancel()
		return page(ctx, options)
	})
	p.PageSize = PageSize
	err := p.EachListItem(ctx, metav1.ListOptions{LabelSelector: selector}, func(object runtime.Object) error {
		item, ok := object.(any).(*T)
		if !ok {
			return fmt.Errorf("the answer has a %T", object)
		}
		all = append(all, *item)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the %s: %w", kind, err)
	}
	return all, nil
}

// Typed makes a page of a typed client's answer.
func Typed[L runtime.Object](of func(context.Context, metav1.ListOptions) (L, error)) pager.ListPageFunc {
	return func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) { return of(ctx, options) }
}

// Velero makes a page of the objects of a kind in Velero's namespace.
func (c *Clients) Velero(kind crclient.ObjectList, by ...crclient.ListOption) pager.ListPageFunc {
	return func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
		into, ok := kind.DeepCopyObject().(crclient.ObjectList)
		if !ok {
			return nil, fmt.Errorf("%T is not a list", kind)
		}
		err := c.Objects.List(ctx, into, slices.Concat(by, []crclient.ListOption{
			crclient.InNamespace(c.VeleroNamespace), crclient.Limit(options.Limit), crclient.Continue(options.Continue),
		})...)
		return into, err
	}
}
